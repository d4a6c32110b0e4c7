"""Folding as a run goes: each record once and once more at the end, and kills between."""

import shutil
from collections import Counter

import pytest

from clipmill.metadata import compaction, storage
from clipmill.metadata.scan import scan
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine import row_job
from tests.engine_stages.harness import meaning, write_pool

ROWS = """
  square: {uses: toy.power, from: numbers}
  fourth: {uses: toy.power, from: square, read: {number: square.power}}
  alone:  {uses: toy.power, from: numbers, exponent: 5}
"""
STAGES = ("square", "fourth", "alone")
EVERY = 2


class KilledError(BaseException):
    """The end of a process, as far as one in this process can be."""


@pytest.fixture
def engine(engine, monkeypatch):
    """A run of five shards and three row stages, which compacts every two records of a stage."""
    monkeypatch.setattr(row_job, "COMPACT_EVERY", EVERY)
    write_pool(engine.pool, [7] * 5)
    return engine


def at_folds(monkeypatch, do):
    """Does something when a compaction was put."""
    reached = storage.reached

    def then(point, name):
        reached(point, name)
        if point == "compaction":
            do(name)

    monkeypatch.setattr(storage, "reached", then)


def test_every_record_is_folded_once_as_the_run_goes_and_once_at_its_end(engine, monkeypatch):
    compacted, put = Counter(), compaction._put

    def counted(folder, name, rows):
        stage = folder.path.rpartition("/")[2].partition("-")[0]
        compacted[stage, name == compaction.COMPACTED] += len(rows)
        put(folder, name, rows)

    monkeypatch.setattr(compaction, "_put", counted)
    ran = engine.run(ROWS)
    assert ran.complete
    for stage in STAGES:
        assert compacted[stage, False] == 5 // EVERY * EVERY, "parts of one stage's own records"
        assert compacted[stage, True] == 5
        assert not [name for name in ran.written(stage) if compaction.PART.fullmatch(name)]
        assert scan(ran.outcome.state.stages[stage].folder).compacted


def test_a_stage_is_listed_as_often_whatever_its_shards(engine, monkeypatch):
    listed = Counter()
    entries = Storage.entries

    def counted(self, folder="", below=False):
        listed[self.path.partition("/stages/")[2].partition("-")[0]] += 1
        return entries(self, folder, below)

    monkeypatch.setattr(Storage, "entries", counted)
    engine.run(ROWS, out="five")
    five = {stage: listed[stage] for stage in STAGES}
    listed.clear()
    write_pool(engine.pool, [7] * 11)
    engine.run(ROWS, out="more")
    assert {stage: listed[stage] for stage in STAGES} == five


@pytest.mark.chaos
def test_killed_at_any_fold_and_run_again_it_ends_the_same_and_computes_nothing_twice(
    engine, monkeypatch
):
    points = []
    at_folds(monkeypatch, points.append)
    engine.run(ROWS, out="whole")
    monkeypatch.undo()
    monkeypatch.setattr(row_job, "COMPACT_EVERY", EVERY)
    whole = meaning(Storage(str(engine.folder / "whole")))
    assert sum(bool(compaction.PART.fullmatch(name)) for name in points) == 5 // EVERY * len(STAGES)
    for number in range(1, len(points) + 1):
        out, left = f"killed-{number}", [number]

        def kill(_, left=left):
            left[0] -= 1
            if not left[0]:
                raise KilledError

        with monkeypatch.context() as patch:
            at_folds(patch, kill)
            with pytest.raises(KilledError):
                engine.run(ROWS, out=out)
        before = {path: path.stat().st_mtime_ns for path in records_in(engine.folder / out)}
        assert engine.run(ROWS, out=out).complete
        assert meaning(Storage(str(engine.folder / out))) == whole
        assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_folder_that_was_copied_is_folded_by_the_next_run_and_nothing_else(engine):
    engine.run(ROWS)
    copy = engine.folder / "copy"
    shutil.copytree(engine.folder / "run", copy, copy_function=shutil.copyfile)
    folders = [next((copy / "stages").glob(f"{stage}-*")) for stage in ("numbers", *STAGES)]
    assert not any(scan(Storage(str(folder))).compacted for folder in folders)
    before = {path: path.stat().st_mtime_ns for path in records_in(copy)}
    assert engine.run(ROWS, out="copy").complete
    assert {path: path.stat().st_mtime_ns for path in records_in(copy)} == before
    assert all(scan(Storage(str(folder))).compacted for folder in folders)


def records_in(run):
    """The records of shards, and their data."""
    return [path for path in run.glob("stages/*/0*") if path.suffix != ".attempt"]
