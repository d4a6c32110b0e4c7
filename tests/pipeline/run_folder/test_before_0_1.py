"""A run folder that clipmill made before it was one package: it is read, and nothing is made anew.

The folder `before_0_1` was written by commit 016d0ce, without what tells of that machine; FOLDER
stands where it lay.
"""

import hashlib
import os
import shutil
from pathlib import Path

import pytest

MADE = Path(__file__).parent / "before_0_1"
RUN = ("--run", "run", "--stages", "stages")  # it does not remember what its own stage was
DATED = ("records.parquet", "manifest.json")
READ_NS = 1_796_021_137_655_690_839  # when the list of links was written


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(MADE, tmp_path, dirs_exist_ok=True)
    (origin,) = tmp_path.glob("run/stages/pool-*/origin.json")
    origin.write_text(origin.read_text().replace("FOLDER", str(tmp_path)))
    os.utime(tmp_path / "it.csv", ns=(READ_NS, READ_NS))  # or it would be read again
    return tmp_path


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file of the stages, but of those that know dates of others."""
    files = (path for path in folder.glob("run/stages/**/*") if path.is_file())
    files = (path for path in files if path.name not in DATED)
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_all_of_it_is_found_done_and_stays_as_it_is(folder, clipmill):
    before = digests(folder)
    assert len(before) > 15
    ran = clipmill("run", "it.yaml", "--out", "run", "--workers", "0", "--json")
    assert ran.code == 0, ran.err
    assert {stage["status"] for stage in ran.json["stages"]} == {"done"}
    assert ran.err.count("found done") == len(ran.json["stages"]) == 6
    assert digests(folder) == before


def test_what_is_asked_of_it_is_answered(folder, clipmill):
    funnel = clipmill("funnel", *RUN, "--json").json
    assert [end["kept"] for end in funnel["ends"]] == [2]
    why = clipmill("why", "http://a.test/3", *RUN)
    assert why.code == 0, why.err
    assert "caption_words" in why.out
    assert clipmill("status", *RUN).out.splitlines()[0].endswith("complete")
