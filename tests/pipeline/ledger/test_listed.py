"""A listed row: `why` says so alone, and nothing that shows rows has its caption, link or picture.

`hide` is one of two pictures in a folder, and on a list by its SHA-256.
"""

import hashlib
import json
import shutil

import numpy as np
import pytest

from clipmill.pipeline.explore.session import Session
from clipmill.pipeline.ledger.rows.table import table
from clipmill.pipeline.run_folder.state import latest
from clipmill.stages.ops.images.encoded import encode

SECRET = "a caption to hide"
RECIPE = """
stages:
  pool:  {uses: ingest.image_folder, path: pictures}
  words: {uses: annotate.caption, from: pool}
  clean: {uses: select.unlisted, from: words, lists: {digests: list.txt}}
  few:   {uses: select.where, from: clean, where: caption_words >= 1}
  left:  {uses: export.table, from: few, format: jsonl, columns: [text, url]}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("listed")
    (folder / "pictures").mkdir()
    for name, text in (("hide", SECRET), ("show", "a caption to show")):
        body = encode(np.full((8, 8, 3), len(name) + ord(name[0]), np.uint8), "png", 3)
        (folder / "pictures" / f"{name}.png").write_bytes(body)
        (folder / "pictures" / f"{name}.txt").write_text(text)
    listed = hashlib.sha256((folder / "pictures" / "hide.png").read_bytes()).hexdigest()
    (folder / "list.txt").write_text(listed.upper())
    (folder / "r.yaml").write_text(RECIPE)
    return folder


@pytest.fixture
def uid(folder, clipmill, monkeypatch) -> str:
    """The run's listed row."""
    monkeypatch.chdir(folder)
    if not (folder / "run").exists():
        assert clipmill("run", "r.yaml", "--out", "run").code == 0
    (row,) = table(latest("run"), "clean", [], dropped=True).collect().to_dicts()
    return row["uid"]


def hides(text: str) -> None:
    assert SECRET not in text
    assert "hide.png" not in text


@pytest.mark.slow("a run, and six commands")
def test_why_says_listed_alone(uid, clipmill):
    for options in ([], ["-v"], ["--json"]):
        said = clipmill("why", uid, "--run", "run", *options)
        assert (said.code, "dropped by 'clean': listed" in said.out) == (0, True), said
        hides(said.out)
        assert "caption" not in said.out.replace('"captions": []', "")
    assert clipmill("why", SECRET, "--run", "run").code == 2, "nor can its caption be asked for"
    shown = clipmill("why", "a caption to show", "--run", "run")
    assert "show.png" in shown.out


@pytest.mark.parametrize("columns", [["text", "url", "image"], ["text", "url"]])
def test_a_table_has_its_numbers_alone(uid, columns):
    rows = table(latest("run"), "words", [*columns, "caption_words"]).collect().to_dicts()
    by_uid = {row.pop("uid"): row for row in rows}
    assert len(by_uid) == 2
    hidden = by_uid.pop(uid)
    assert hidden == dict.fromkeys(columns) | {"caption_words": 4}
    (other,) = by_uid.values()
    assert None not in other.values()


def test_pages_have_neither_caption_nor_link(uid, clipmill, folder):
    assert clipmill("report", "--run", "run", "--out", "page.html").code == 0
    hides((folder / "page.html").read_text())
    session = Session("run", folder)
    rows = session.rows(json.dumps({"root": "pool", "rows": [0, 1], "columns": []}).encode())
    assert [row["text"] is None for row in rows] == [row["uid"] == uid for row in rows]
    hides(json.dumps(rows))
    hides(json.dumps(session.why(json.dumps({"uid": uid}).encode())))


def test_an_export_holds_no_listed_row(uid, clipmill, folder):
    (left,) = (folder / "run").rglob("rows.jsonl")
    assert "a caption to show" in left.read_text()
    hides(left.read_text())
    lost = ("export", "--run", "run", "--stage", "clean", "--dropped", "listed", "--to", "jsonl")
    assert "do not leave" in clipmill(*lost, "--out", "lost").err
    early = clipmill("export", "--run", "run", "--stage", "words", "--to", "jsonl", "--out", "all")
    assert "'clean' has listed rows of 'words'" in early.err


def test_only_counts_are_written_and_a_list_that_changes_is_heeded(uid, clipmill, folder):
    (counts,) = (folder / "run").rglob("lists.json")
    assert json.loads(counts.read_text()) == {"rows": 1, "digests": 1}
    assert "listed" in clipmill("funnel", "--run", "run").out
    shutil.copytree(folder / "run", folder / "again")
    (folder / "other.txt").write_text("0" * 64)
    other = ("--set", "clean.lists.digests=other.txt")
    assert clipmill("run", "r.yaml", "--out", "again", *other).code == 0
    assert "hide.png" in clipmill("why", SECRET, "--run", "again").out
