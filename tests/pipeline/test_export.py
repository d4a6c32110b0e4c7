"""`clipmill export`: a finished stage's rows, in a folder of one's own."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest


@pytest.fixture
def run(every_stage, tmp_path) -> Path:
    """A finished run that may be written to."""
    return shutil.copytree(every_stage.state.run.path, tmp_path / "run")


@pytest.fixture
def export(run, tmp_path, clipmill):
    def export(stage: str, to: str, *arguments: object, path: str = "out"):
        where = ("--run", run, "--stage", stage, "--to", to, "--workers", 0)
        return clipmill("export", tmp_path / path, *where, *arguments)

    return export


@pytest.fixture
def kept(every_stage) -> set[str]:
    """The uids that the select stage keeps."""
    rows = every_stage.values(every_stage.stage_of("select.where"))
    return {row["uid"] for row in rows if row["keep"]}


def test_parquet_holds_the_rows_that_a_select_stage_keeps(export, kept, tmp_path):
    assert export("subset", "parquet").code == 0
    table = pq.read_table(next((tmp_path / "out").glob("*.parquet")))
    uids = {uid.hex() for uid in table["uid"].to_pylist()}
    assert len(uids) == len(kept) - 1, "one of them has no caption"
    assert uids < kept
    assert table["image"].null_count == 0


def test_a_webdataset_holds_the_same_and_its_files_are_named(export, kept, tmp_path):
    files = export("subset", "webdataset", "--json").json
    assert sorted(files) == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert not [file for file in files if "places" in file], "they are of the run's shards"
    with tarfile.open(tmp_path / "out" / "00000.tar") as tar:
        told = [json.load(tar.extractfile(m)) for m in tar if m.name.endswith(".json")]
    assert {row["uid"] for row in told} < kept


def test_a_list_of_uids_needs_no_image(export, every_stage, tmp_path):
    assert export("lang", "uid_list").code == 0
    uids = np.load(tmp_path / "out" / "uids.npy")
    assert len(uids) == len(every_stage.values(every_stage.stage_of("annotate.language")))


def test_every_row_leaves_where_no_select_stage_stands_before(export, tmp_path):
    assert export("both", "parquet").code == 0
    card = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert card["counts"]["rows"] == 240
    assert card["counts"]["not_kept"] == 0


def test_exported_again_the_files_are_the_same_and_nothing_is_computed(export, run, tmp_path):
    export("subset", "parquet")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    made = {path: path.stat().st_mtime_ns for path in run.glob("stages/export_*/**/*")}
    assert export("subset", "parquet").code == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert {path: path.stat().st_mtime_ns for path in run.glob("stages/export_*/out/*")} == {
        path: time for path, time in made.items() if path.parent.name == "out"
    }


def test_the_run_still_answers_after_an_export(export, run, kept, clipmill):
    export("subset", "uid_list")
    ends = {end["stage"]: end for end in clipmill("funnel", "--run", run, "--json").json["ends"]}
    assert ends["subset"]["kept"] == len(kept)
    assert export("subset", "parquet", path="more").code == 0


def test_a_folder_that_holds_other_files_is_refused_and_left_alone(export, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "00009.parquet").write_bytes(b"of another export")
    said = export("subset", "parquet")
    assert said.code == 2
    assert "the folder holds other files: 00009.parquet" in said.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["00009.parquet"]


@pytest.mark.parametrize(
    ("stage", "to", "said"),
    [
        ("subste", "parquet", "did you mean 'subset'"),
        ("shards", "uid_list", "'shards' gives data, and `from` takes rows"),
        ("lang", "parquet", "no ancestor writes column 'image'"),
    ],
)
def test_what_cannot_be_exported_is_refused(stage, to, said, export, run, tmp_path):
    before = sorted(run.rglob("*"))
    ended = export(stage, to)
    assert ended.code == 2
    assert said in ended.err
    assert sorted(run.rglob("*")) == before
    assert not (tmp_path / "out").exists()
