"""Files that change after they were stored: seen, blamed on their own stage, and made again."""

import errno
from pathlib import Path

import pytest

from clipmill.metadata.outputs import noted_outputs
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine import dataset_job
from clipmill.pipeline.engine import run as run_module
from clipmill.pipeline.run_folder.state import latest, summary
from tests.engine_stages.harness import meaning

MADE = """
  square: {uses: toy.power, from: numbers}
  shared: {uses: toy.shared, from: numbers}
  chosen: {uses: select.where, from: [square, shared], where: shared > 6}
  cube:   {uses: toy.power, from: numbers, only: chosen, exponent: 3}
  files:  {uses: toy.files, from: numbers}
"""
READ = f"""{MADE}
  all:
    uses: select.where
    from: [square, shared, cube, chosen]
    where: cube.power > square.power AND shared > 0 AND number >= 0
  uids:   {{uses: export.uid_list, from: [chosen, all], read: {{keep: chosen.keep}}}}
"""


def data_files(run: Path, stage: str) -> list[Path]:
    """The stage's data files, in the order of their shards."""
    return sorted(run.glob(f"stages/{stage}-*/*-*.parquet"))


def flip(path: Path, place: float = 0.5) -> None:
    """Changes one bit of a file, at a part of its length."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.chaos)])
def test_several_damaged_files_of_several_stages_are_mended_in_one_run(engine, workers):
    fresh = engine.run(READ, out="fresh")
    engine.run(MADE)
    for stage in ("numbers", "square", "shared", "chosen"):
        for path in data_files(engine.folder / "run", stage):
            flip(path)
    mended = engine.run(READ, workers=workers)
    assert mended.complete
    for stage in ("all", "chosen", "cube"):
        assert mended.column(stage, "reason") == fresh.column(stage, "reason")


def test_a_file_of_other_rows_or_types_is_no_file_of_ours(engine, capfd):
    """Whose digest is right: it is the record that has changed, or the stage's declaration."""
    engine.run(MADE)
    record = next((engine.folder / "run").glob("stages/square-*/000000.json"))
    record.write_text(record.read_text().replace('"rows":12', '"rows":13'))
    assert engine.run(READ).complete
    assert "square: 000000" in capfd.readouterr().err


def test_damage_that_comes_back_stops_the_stage(engine, monkeypatch):
    engine.run(MADE)
    flip(data_files(engine.folder / "run", "square")[0])
    monkeypatch.setattr(run_module, "take_away", lambda folder, name: None)
    after = engine.run(READ)
    assert not after.complete
    assert "disk and memory" in after.error("square")
    assert after.outcome.stopped["all"] is None


def test_a_shard_first_written_without_checksums_is_made_again_without(engine, monkeypatch):
    from clipmill.pipeline.engine import chain_compute

    writer = chain_compute.ShardWriter
    monkeypatch.setattr(
        chain_compute, "ShardWriter", lambda path, schema, _: writer(path, schema, False)
    )
    engine.run(MADE)
    monkeypatch.undo()
    before = data_files(engine.folder / "run", "square")
    flip(before[0])
    assert engine.run(READ).complete
    assert data_files(engine.folder / "run", "square") == before  # the names hold the digests


# What a stage leaves in out/


@pytest.mark.parametrize("harm", ["cut", "empty", "gone", "stranger"])
def test_out_is_as_it_was_stored_or_not_done(engine, harm):
    engine.run(MADE)
    run = engine.folder / "run"
    before = meaning(Storage(str(run)))
    (file, *_) = sorted(run.glob("stages/files-*/out/*"))
    match harm:
        case "cut":
            file.write_bytes(file.read_bytes()[:-1])
        case "empty":
            file.write_bytes(b"")
        case "gone":
            file.unlink()
        case "stranger":
            file.with_name("stranger.txt").write_text("mine")
    assert summary(latest(str(run)).stages["files"]) == "nothing yet, 1 file gone or changed"
    assert engine.run(MADE).complete
    assert meaning(Storage(str(run))) == before


@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_a_file_that_changed_before_its_stage_was_done_is_made_again(engine, monkeypatch, harm):
    engine.run(MADE, out="fresh")

    def full(folder: Storage):
        if "/files-" in folder.path:
            raise OSError(errno.ENOSPC, "full")
        return noted_outputs(folder)

    monkeypatch.setattr(dataset_job, "noted_outputs", full)
    assert "full" in engine.run(MADE).error("files")
    monkeypatch.undo()
    file = next((engine.folder / "run").glob("stages/files-*/out/1.txt"))
    file.unlink() if harm == "gone" else file.write_text("1\n")
    assert engine.run(MADE).complete
    fresh, mended = (meaning(Storage(str(engine.folder / run))) for run in ("fresh", "run"))
    assert mended == fresh
