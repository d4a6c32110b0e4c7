"""`data: "export:…"`: an export of another run, read where it lies, and what is wrong with one."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from clipmill.metadata.outputs import Outputs
from clipmill.metadata.storage import Storage
from clipmill.pipeline.cli import main
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.planning.elsewhere import digest_of
from tests.stages.clip.exported import row

FIRST = """
stages:
  pool:   {uses: ingest.image_folder, path: PATH}
  shards: {uses: export.parquet, from: pool, rows_per_shard: 4}
"""
SECOND = """
stages:
  hub: {uses: export.huggingface, data: "export:PATH"}
"""


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """A finished run of an export, and below it as a folder of its own: `shards`."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "pool").mkdir()
    for i in range(6):
        (folder / "pool" / f"{i}.png").write_bytes(row(i)["image"])
        (folder / "pool" / f"{i}.txt").write_text(f"thing {i}")
    (folder / "it.yaml").write_text(FIRST.replace("PATH", str(folder / "pool")))
    run = folder / "run"
    assert main(["run", str(folder / "it.yaml"), "--out", str(run), "--workers", "0"]) == 0
    to = ("--to", "parquet", "--out", str(folder / "shards"), "--workers", "0")
    assert main(["export", "--run", str(run), "--stage", "pool", *to]) == 0
    return folder


@pytest.fixture
def export(first, tmp_path) -> Path:
    """The folder of the first run's export stage, alone."""
    (stage,) = (first / "run" / "stages").glob("shards-*")
    return shutil.copytree(stage, tmp_path / "export")


@pytest.fixture
def read(clipmill, tmp_path):
    """A run that reads the export in a folder."""

    def read(path, verb="run"):
        (tmp_path / "it.yaml").write_text(SECOND.replace("PATH", str(path)))
        workers = ("--workers", 0) if verb == "run" else ()
        return clipmill(verb, tmp_path / "it.yaml", "--out", tmp_path / "second", *workers)

    return read


def made(tmp_path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in tmp_path.glob("second/stages/*/out/**/*.p*")}


def test_an_export_of_another_run_is_read_and_no_stage_before_it_is_known(read, export, tmp_path):
    assert "data export:/" in read(export, "plan").out
    assert read(export).code == 0
    [summary] = tmp_path.glob("second/stages/hub-*/out/dataset.json")
    assert json.loads(summary.read_text())["counts"]["exported"] == 6
    before = made(tmp_path)
    assert read(export).code == 0
    assert made(tmp_path) == before
    shutil.rmtree(export)
    assert read(export).code == 0, "a stage that is done needs its source no more"
    assert made(tmp_path) == before


def test_one_that_changed_is_read_again(read, export, tmp_path):
    assert read(export).code == 0
    before = made(tmp_path)
    summary = export / "out" / "dataset.json"
    told = json.loads(summary.read_text())
    summary.write_text(json.dumps(told | {"license": "CC0-1.0"}))
    manifest = json.loads((export / "manifest.json").read_text())["value"]
    sizes = [[name, (export / "out" / name).stat().st_size] for name, _ in manifest["outputs"]]
    other = {"outputs": sizes, "output_sha256": {}}
    (export / "manifest.json").write_text(json.dumps(manifest | other))
    assert read(export).code == 0
    assert made(tmp_path) != before


def test_an_export_that_left_its_run_is_held_to_the_digests_in_its_dataset(first):
    outputs = Outputs(Storage(str(first / "shards")))
    assert (outputs.inside, sorted(outputs.sizes)) == ("", ["00000.parquet"])
    with outputs.parquet("00000.parquet") as file:
        assert file.metadata.num_rows == 6


def torn(export):
    data = (export / "out" / "00001.parquet").read_bytes()
    (export / "out" / "00001.parquet").write_bytes(data[:-1])


def foreign(export):
    shutil.rmtree(export)
    export.mkdir()
    (export / "dataset.json").write_text('{"files": ["a.csv"]}')  # another program's


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        (shutil.rmtree, "no export"),
        (lambda export: (export / "manifest.json").unlink(), "an export that is not finished"),
        (lambda export: (export / "out" / "00001.parquet").unlink(), "00001.parquet is not there"),
        (torn, "00001.parquet has another size"),
        (foreign, "no export"),
        (lambda export: (export / "out" / "dataset.json").write_text("{"), "dataset.json"),
    ],
    ids=["missing", "unfinished", "half there", "torn", "foreign", "no json"],
)
def test_one_that_is_missing_or_half_there_is_refused_before_anything_runs(
    harm, found, read, export
):
    harm(export)
    said = read(export)
    assert said.code == 2, said.err
    assert found in said.err
    assert f"stage 'hub', key 'data': {export}" in said.err


def test_files_in_folders_of_an_export_are_found(tmp_path):
    """As those of a Hugging Face dataset lie."""
    name = "data/train-00000-of-00001.parquet"
    (tmp_path / "data").mkdir()
    (tmp_path / name).write_bytes(b"rows")
    listed = {"file": name, "bytes": 4, "sha256": hashlib.sha256(b"rows").hexdigest()}
    (tmp_path / "dataset.json").write_text(json.dumps({"counts": {}, "files": [listed]}))
    assert len(digest_of(str(tmp_path), "here")) == 64
    (tmp_path / name).write_bytes(b"row")
    with pytest.raises(StageError, match="has another size"):
        digest_of(str(tmp_path), "here")


def test_a_changed_byte_is_met_where_the_file_is_read(read, export):
    data = bytearray((export / "out" / "00000.parquet").read_bytes())
    data[40] ^= 1
    (export / "out" / "00000.parquet").write_bytes(data)
    said = read(export)
    assert said.code == 1
    assert f"{export}/out/00000.parquet" in said.out
    assert "not of this run: copy it there once more" in said.out


def test_a_folder_that_left_its_run_says_that_it_has_no_places(read, first):
    said = read(first / "shards")
    assert said.code == 1
    assert "no 00000.places.npy" in said.out
    assert "RUN/stages/NAME-" in said.out


@pytest.mark.parametrize(
    ("stages", "found"),
    [
        ('it: {uses: export.huggingface, data: "export:"}', "`data` names no folder"),
        (
            'it: {uses: select.where, data: "export:x", where: width > 1}',
            "select.where takes no `data`",
        ),
        (
            'it: {uses: export.huggingface, data: "export:x", rows: some}',
            "'some' selects rows of this run's pool, and the data are another run's export",
        ),
        (
            'more: {uses: export.parquet, data: "export:x"}\n'
            "  it: {uses: export.huggingface, data: more, rows: some}",
            "'some' selects rows of this run's pool, and the data are another run's export",
        ),
        (
            "all: {uses: export.parquet, from: pool}\n"
            "  it: {uses: train.clip, data: all, rows: some, subset: list.txt}",
            "`rows` and `subset` both say which rows",
        ),
    ],
    ids=["no uri", "takes none", "rows", "rows of an export of it", "rows and subset"],
)
def test_what_does_not_go_together_is_refused_at_plan(stages, found, clipmill, first, tmp_path):
    pool = f"stages:\n  pool: {{uses: ingest.image_folder, path: {first}/pool}}\n"
    some = "  some: {uses: select.where, from: pool, where: uid IS NOT NULL}\n"
    (tmp_path / "it.yaml").write_text(f"{pool}{some}  {stages}\n")
    said = clipmill("plan", tmp_path / "it.yaml")
    assert said.code == 2
    assert found in said.err
