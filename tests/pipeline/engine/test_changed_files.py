"""Files that change after they were stored: seen, blamed on their own stage, and made again."""

import errno
import json
from pathlib import Path

import pytest
import yaml

from clipmill.metadata.outputs import noted_outputs
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine import dataset_job, verify
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


def test_a_file_that_a_file_manager_leaves_in_out_makes_nothing_again(engine):
    before = engine.run(MADE)
    (out,) = (engine.folder / "run").glob("stages/files-*/out")
    (out / ".DS_Store").write_bytes(b"Bud1")
    after = engine.run(MADE)
    assert after.complete
    assert after.written("files") == before.written("files")
    assert (out / ".DS_Store").exists()


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
    older = json.dumps({**json.loads(record.read_text())["value"], "rows": 13})
    record.write_text(older)  # as versions wrote it that knew no seal
    assert engine.run(READ).complete
    assert "square: 000000" in capfd.readouterr().err


@pytest.fixture
def again(engine, clipmill):
    """Runs the recipe that ran last once more, as the command does."""

    def run():
        (*_, ran) = sorted((engine.folder / "run/recipes").iterdir())
        recipe = engine.folder / "again.yaml"
        recipe.write_text(yaml.safe_dump({"stages": json.loads(ran.read_text())["stages"]}))
        return clipmill("run", recipe, "--out", engine.folder / "run", "--workers", 0)

    return run


def test_files_that_are_met_as_a_run_tells_how_it_ended_are_made_again_by_it(engine, again):
    before = meaning(Storage(str(engine.run(READ).folder)))
    for path in data_files(engine.folder / "run", "chosen"):
        flip(path)
    said = again()
    assert said.code == 0, said.err
    assert said.err.count("is damaged: made again") == 1, "all of them at once"
    assert said.out.startswith("done: 8 stages")
    after = meaning(Storage(str(engine.folder / "run")))
    assert {**after, "recipes": ()} == {**before, "recipes": ()}


def test_such_files_that_come_back_damaged_end_the_run(engine, again, monkeypatch):
    engine.run(READ)
    flip(data_files(engine.folder / "run", "chosen")[0])
    monkeypatch.setattr(verify, "take_away", lambda folder, name: None)
    said = again()
    assert said.code == 1
    assert "disk and memory" in said.err


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


@pytest.mark.parametrize("harm", ["cut", "gone", "flipped"])
def test_a_file_that_changed_before_its_stage_was_done_is_made_again(engine, monkeypatch, harm):
    engine.run(MADE, out="fresh")

    def full(folder: Storage, began_ns: int):
        if "/files-" in folder.path:
            raise OSError(errno.ENOSPC, "full")
        return noted_outputs(folder, began_ns)

    monkeypatch.setattr(dataset_job, "noted_outputs", full)
    assert "full" in engine.run(MADE).error("files")
    monkeypatch.undo()
    file = next((engine.folder / "run").glob("stages/files-*/out/1.txt"))
    if harm == "flipped":
        file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    else:
        file.unlink() if harm == "gone" else file.write_text("1\n")
    assert engine.run(MADE).complete
    fresh, mended = (meaning(Storage(str(engine.folder / run))) for run in ("fresh", "run"))
    assert mended == fresh
