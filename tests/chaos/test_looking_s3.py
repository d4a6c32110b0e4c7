"""A run in a bucket, looked at: the words, rows and pictures of a run on a disk, and no key."""

import json
import re

import pytest
import yaml
from PIL import Image

from clipmill.pipeline.cli import main
from clipmill.pipeline.explore.session import Session
from clipmill.pipeline.ledger.rows.table import table
from clipmill.pipeline.run_folder.state import latest

pytestmark = pytest.mark.soak
STAGES = """
pool:    {uses: ingest.image_folder, path: none, shard_rows: 5}
caption: {uses: annotate.caption, from: pool}
worth:   {uses: select.where, from: caption, where: caption_words >= 3}
look:    {uses: annotate.image, from: pool, only: worth}
best:    {uses: select.where, from: [worth, look], top: {column: min_side, rows: 4}}
"""
TEXTS = ["a red square", "logo", "two blue squares side by side"]


@pytest.fixture(scope="module")
def outs(bucket, tmp_path_factory) -> list[str]:
    """A run of twelve pictures on a disk, and the same in a bucket."""
    folder = tmp_path_factory.mktemp("looking")
    pool = folder / "pool"
    pool.mkdir()
    for i in range(12):
        Image.new("RGB", (20 + 3 * i, 40 + i), (20 * i, 90, 40)).save(pool / f"{i:02}.png")
        if i % 6 != 4:  # has no caption
            (pool / f"{i:02}.txt").write_text(f"{TEXTS[i % 3]} {i}" if i % 3 != 1 else TEXTS[1])
    stages = yaml.safe_load(STAGES)
    stages["pool"]["path"] = str(pool)
    recipe = folder / "mine.yaml"
    recipe.write_text(yaml.safe_dump({"stages": stages}))
    found = [str(folder / "run"), bucket.uri("looking")]
    for out in found:
        assert main(["run", str(recipe), "--out", out, "--workers", "0"]) == 0
    return found


ASKED = [
    ["show", "best"],
    ["show", "caption", "--dropped"],
    ["show", "worth", "--dropped", "caption_words >= 3", "--columns", "text,caption.caption_words"],
    ["show", "best", "--near-cut", "--json"],
    ["show", "pool", "--where", "text LIKE '%11'", "--sort", "text", "--desc"],
    ["why", "a red square 9", "-v"],
    ["why", "squares side by side 2", "a red square 0"],
    ["why", "a red square 9", "--json"],
]


@pytest.mark.parametrize("asked", ASKED, ids=" ".join)
def test_a_run_in_a_bucket_answers_as_one_on_a_disk(asked, outs, capsys):
    said = []
    for out in outs:
        assert main([*asked, "--run", out]) == 0, capsys.readouterr().err
        text = capsys.readouterr()
        assert "SECRET" not in text.out + text.err
        said.append(text.out.replace(out, "RUN").replace(bare(out), "RUN"))
    assert said[1] == said[0]
    assert len(said[0]) > 100


def test_a_page_of_a_run_in_a_bucket_has_its_pictures(outs, tmp_path, capsys):
    pages = []
    for number, out in enumerate(outs):
        page = tmp_path / f"{number}.html"
        assert main(["show", "best", "--near-cut", "--html", str(page), "--run", out]) == 0
        assert "SECRET" not in capsys.readouterr().out + page.read_text()
        pages.append(re.findall(r"data:image/[^\"]+", page.read_text()))
    assert pages[1] == pages[0]
    assert len(pages[0]) == 8


def test_a_table_reads_a_bucket_as_a_disk(outs):
    here, there = (
        table(latest(out), "worth", ["text", "caption_words"], where="caption_words <> 4")
        for out in outs
    )
    assert here.collect().height > 3
    assert there.collect().equals(here.collect())
    assert there.tail(3).collect().equals(here.tail(3).collect())


def test_a_run_in_a_bucket_is_explored_as_one_on_a_disk(outs, tmp_path):
    said = []
    for number, out in enumerate(outs):
        session = Session(out, tmp_path / f"{number}.yaml")
        query = {"root": "pool", "end": "best", "histograms": ["look.min_side"], "limit": 5}
        answer = session.query(json.dumps(query).encode())
        page = {"root": "pool", "rows": answer["parts"]["rows"]["page"]}
        rows = session.rows(json.dumps(page).encode())
        cut, *_ = session.facts()["roots"][0]["thresholds"]
        threshold = {**{name: cut[name] for name in ("stage", "name", "text")}, "value": 5}
        asked = json.dumps({"root": "pool", "threshold": threshold}).encode()
        assert "SECRET" not in json.dumps([session.facts(), session.changed(asked)])
        assert session.save(asked)["file"] == str(tmp_path / f"{number}-2.yaml")
        said.append((answer["causes"], [row["text"] for row in rows]))
    assert said[1] == said[0]
    assert [len(part) for part in said[0]] == [4, 5]


@pytest.mark.parametrize(
    "asked", [["show", "bset"], ["why", "nothing like it"], ["show", "pool", "--dropped", "x"]]
)
def test_what_is_wrong_is_told_without_a_key(asked, outs, capsys):
    assert main([*asked, "--run", outs[1]]) == 2
    assert "SECRET" not in capsys.readouterr().err


@pytest.mark.parametrize("asked", [["show", "best"], ["why", "a red square 9"]])
def test_a_folder_of_a_bucket_without_a_run_is_told_without_a_key(asked, bucket, capsys):
    assert main([*asked, "--run", bucket.uri("nothing")]) == 2
    said = capsys.readouterr().err
    assert "SECRET" not in said
    assert "bucket/nothing" in said


def bare(uri: str) -> str:
    """The folder as it is shown."""
    return re.sub(r"//[^/@]*@|\?.*", lambda it: "//" if "@" in it.group() else "", uri)
