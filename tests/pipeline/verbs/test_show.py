"""`clipmill show`: a table as wide as the terminal, and a page that no row can break."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.cells import cell_len

from clipmill.pipeline.ledger.selection.show import ShowQuery, show
from clipmill.pipeline.run_folder.state import latest
from clipmill.pipeline.verbs.show import text
from tests.legible import LEADING_NOWHERE, faults, looks

pytestmark = pytest.mark.usefixtures("own_stages")
EVIL = "</figure><script>alert(1)</script><img src=x onerror=alert(2)> \"'&lt;"
TERMINAL = "\x1b[31mred\x1b]0;title\x07 \u202egnp\nsecond line"
CAPTIONS = [
    *(EVIL, TERMINAL, "", "x" * 5000, "寿司の写真 " * 30, "an ordinary picture of a fox"),
    *("word " * n for n in range(1, 5)),
]
RECIPE = """
stages:
  pool:  {uses: ingest.image_folder, path: pictures, shard_rows: 4}
  words: {uses: annotate.caption, from: pool}
  best:  {uses: select.where, from: words, where: caption_words >= 3}
"""


@pytest.fixture(scope="module")
def run(own_stages, tmp_path_factory) -> Path:
    """A run over pictures of which some are none, with captions of strangers."""
    from clipmill.pipeline.cli import main

    folder = tmp_path_factory.mktemp("show")
    pictures = folder / "pictures"
    pictures.mkdir()
    for number, caption in enumerate(CAPTIONS):
        pixels = np.full((30 + 9 * number, 60, 3), 20 * number, np.uint8)
        Image.fromarray(pixels).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text(caption, encoding="utf-8")
    (pictures / "1.png").write_bytes(b"<svg onload=alert(3)>")
    (pictures / "5.png").rename(pictures / "5.gif")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(pictures / "5.gif")
    (folder / "it.yaml").write_text(RECIPE.replace("path: pictures", f"path: {pictures}"))
    assert main(["run", str(folder / "it.yaml"), "--out", str(folder / "run"), "--workers=0"]) == 0
    return folder / "run"


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_table_is_as_wide_as_the_terminal_a_row_a_line(columns, run, clipmill, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    said = clipmill("show", "pool", "--run", run, "--columns", "shard,url,text")
    assert said.code == 0, said.err
    head, empty, names, *rows = said.out.splitlines()
    assert head == f"{run}: 10 rows that 'pool' was given"
    assert (empty, names.split()) == ("", ["uid", "shard", "url", "text"])
    assert len(rows) == 10
    assert all(re.match("[0-9a-f]{8}  ", row) for row in rows)
    assert max(map(cell_len, rows)) <= columns
    assert "\x1b" not in said.out
    assert "\u202e" not in said.out
    if columns == 200:
        assert any("寿司の写真" in row for row in rows)
        assert any(row.endswith(("…", "x")) for row in rows)


def test_without_columns_it_shows_what_the_stage_decided_by(run, clipmill):
    said = clipmill("show", "best", "--run", run, "-n", 3).out.splitlines()
    assert re.search(r"that 'best' keeps; 3 of them, sampled by a hash of their uids$", said[0])
    assert said[2].split() == ["uid", "caption_words", "text"]
    said = clipmill("show", "best", "--run", run, "--dropped", "caption_words >= 3").out
    assert "that 'best' dropped for 'caption_words >= 3'" in said
    said = clipmill("show", "pool", "--run", run, "--sort", "caption_words", "--desc", "-n", 2).out
    assert "; 2 of them, the greatest caption_words first" in said
    near = clipmill("show", "best", "--run", run, "--near-cut").out
    assert "dropped at caption_words >= 3: " in near
    assert "kept at caption_words >= 3: " in near


def test_json_says_the_same_rows(run, clipmill):
    found = clipmill("show", "best", "--run", run, "--near-cut", "--json").json
    assert [group["kept"] for group in found["groups"]] == [False, True]
    said = clipmill("show", "best", "--run", run, "--near-cut").out
    lines = [line for group in found["groups"] for line in group["lines"]]
    assert lines
    assert all(line["uid"][:8] in said for line in lines)


def test_the_page_shows_pictures_and_what_is_none_is_text(run, clipmill, tmp_path, tab):
    page = tmp_path / "page.html"
    said = clipmill("show", "pool", "--run", run, "--html", page)
    assert said.out.endswith(f"10 rows; 1 without a picture that can be decoded in {page}\n")
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "onerror=alert(2)> " not in text
    kinds = set(re.findall(r'src="(data:[^;]*)', text))
    assert kinds <= {"data:image/png", "data:image/jpeg"}
    assert "http://" not in text
    assert [bad for _ in looks(tab, page) for bad in faults(tab)] == []
    assert tab.value(LEADING_NOWHERE) == []
    shown = "[...document.querySelectorAll('main img')].map((e) => e.naturalWidth > 0)"
    assert tab.value(shown) == 9 * [True]
    assert (
        tab.value(
            "[...document.querySelectorAll('.frame')].filter((e) => !e.querySelector('img')).length"
        )
        == 1
    )
    captions = tab.value("[...document.querySelectorAll('bdi')].map((e) => e.textContent)")
    assert EVIL in captions
    tab.value("document.querySelector('a.frame').click()")
    assert tab.value("document.querySelector(':target .smaller').checkVisibility()")


def test_both_sides_of_a_cut_stand_side_by_side_on_the_page(run, clipmill, tmp_path, tab):
    page = tmp_path / "near.html"
    clipmill("show", "best", "--run", run, "--near-cut", "--html", page)
    assert [bad for _ in looks(tab, page) for bad in faults(tab)] == []
    tab.show(page, 1400, "dark")
    side = "[...document.querySelectorAll('.side')].map((e) => e.getBoundingClientRect().left)"
    left, right = tab.value(side)
    assert right > left + 500


def test_a_value_beside_its_threshold_is_not_rounded_onto_it(run):
    answer = show(latest(str(run)), ShowQuery(stage="best", columns=("caption_words",), most=1))
    (group,) = answer.groups
    line = replace(group.lines[0], values={"caption_words": 0.29996})
    assert "0.29996" in text(replace(answer, groups=(replace(group, lines=(line,)),)))


def test_of_many_rows_the_page_holds_some_and_says_so(run, clipmill, tmp_path, monkeypatch):
    monkeypatch.setattr("clipmill.pipeline.report.show_page.MOST", 4)
    said = clipmill("show", "pool", "--run", run, "--html", tmp_path / "page.html").out
    assert "6 more rows are left out, as a page holds 4" in said
    assert "6 more rows are left out" in (tmp_path / "page.html").read_text()


def test_a_stage_without_pictures_is_a_table_on_the_page(
    numbered_run, own_stages, clipmill, tmp_path
):
    page = tmp_path / "page.html"
    said = clipmill("show", "last", "--run", numbered_run / "run", "--html", page)
    assert said.out.endswith(f"4 rows; no stage that is done has pictures of them in {page}\n")
    assert "row 17" in page.read_text()
    assert "leads to a larger view" not in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nosuch"], "no stage 'nosuch'"),
        (["best", "--columns", "caption_word"], "did you mean 'caption_words'"),
        (["best", "-n", "many"], "takes a whole number"),
        (["best", "--where", "caption_words > 'a'"], "compares a number with text"),
        (["pool", "--sort", "image"], "has no order"),
        (["pool", "--near-cut"], "has no threshold"),
        (["best", "--variant", "7"], "clipmill diff"),
        (["best", "--html", "no/such/page.html"], "no such file or folder"),
    ],
)
def test_what_is_wrong_ends_with_2_in_three_lines(arguments, said, run, clipmill):
    found = clipmill("show", *arguments, "--run", run)
    assert found.code == 2
    assert said in found.err
    assert len(found.err.splitlines()) == 3


def test_a_run_that_is_being_written_shows_what_is_done(run, clipmill, tmp_path):
    half = tmp_path / "half"
    shutil.copytree(run, half)
    (folder,) = (half / "stages").glob("words-*")
    (folder / "records.parquet").unlink(missing_ok=True)
    for record in folder.glob("000001*.json"):
        record.unlink()
    (folder / ".000001-half.parquet.tmp").write_bytes(b"PAR1")
    said = clipmill("show", "pool", "--run", half, "--sort", "caption_words")
    assert said.code == 0
    assert "not complete: 'words' has 2 of 3 shards" in said.out
    assert (
        json.loads(clipmill("show", "best", "--run", half, "--json").out)["groups"][0]["rows"] == 0
    )


def test_a_file_that_is_gone_or_has_changed_is_named(run, clipmill, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    (folder,) = (broken / "stages").glob("pool-*")
    file = next(folder.glob("000001-*.parquet"))
    file.write_bytes(file.read_bytes()[::-1])
    found = clipmill("show", "pool", "--run", broken)
    assert found.code == 1
    assert "its bytes have changed" in found.err
    assert "verify" in found.err
    file.unlink()
    found = clipmill("show", "pool", "--run", broken)
    assert found.code == 0
    assert "6 rows that 'pool' was given\nnot complete: 'pool' has 2 of 3 shards" in found.out
