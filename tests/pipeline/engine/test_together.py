"""Shards whose sources are read as one: the same as alone, and each stored on its own."""

import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.run_folder.live import LiveReporter
from tests.engine_stages.harness import meaning

TOGETHER = "numbers.together=2"


@pytest.fixture
def groups_read(engine):
    """The groups of sources that were read since the last look, by their first lines."""
    from clipmill_own.toy.numbers import READ

    def groups_read() -> list[list[int]]:
        groups = list(READ)
        READ.clear()
        return groups

    groups_read()
    return groups_read


def stored(engine, out: str):
    """All that a run folder holds but the recipe's settings."""
    held = meaning(Storage(str(engine.folder / out)))
    return {name: it for name, it in held.items() if name != "recipes" and "origin" not in name}


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_stored_is_the_same_read_alone_or_together(engine, workers):
    alone = engine.run("", out="alone")
    both = engine.run("", TOGETHER, out="both", workers=workers)
    assert both.complete
    assert both.column("numbers", "number") == alone.column("numbers", "number")
    assert stored(engine, "both") == stored(engine, "alone")


def test_a_group_is_read_by_one_call_and_not_again(engine, groups_read):
    engine.run("", TOGETHER)
    assert groups_read() == [[0, 12], [0], [0]]
    assert engine.run("", TOGETHER).complete
    assert groups_read() == []


def test_of_a_pool_whose_first_shards_alone_are_made_the_others_are_not_told_as_done(
    engine, monkeypatch
):
    told = []
    monkeypatch.setattr(LiveReporter, "unit", lambda self, *given: told.append(given[1:4]))
    folder = Storage(str(engine.folder / "run"))
    run_plan(engine.plan("", TOGETHER), folder, LocalExecutor(0), Lines(), most_shards=1)
    assert [given for given in told if given[0] == "shards"] == [("shards", 0, 1), ("shards", 1, 1)]


def test_only_the_shards_of_a_group_that_are_not_stored_are_asked_for(engine, groups_read):
    ran = engine.run("", TOGETHER)
    groups_read()
    kept = ran.records("numbers")[0][0].data
    (record,) = (engine.folder / "run").glob("stages/numbers-*/000001.json")
    (manifest,) = (engine.folder / "run").glob("stages/numbers-*/manifest.json")
    record.unlink(), manifest.unlink()
    again = engine.run("", TOGETHER)
    assert again.complete
    assert groups_read() == [[12]]
    assert again.records("numbers")[0][0].data == kept
    assert again.column("numbers", "number") == ran.column("numbers", "number")


def test_of_a_group_that_fails_only_the_bad_source_is_set_aside(engine, groups_read):
    file = sorted(engine.pool.glob("*.txt"))[0]
    good = file.read_text()
    lines = good.splitlines()
    lines[15] = "no number"
    file.write_text("\n".join(lines))
    ran = engine.run("", TOGETHER)
    assert not ran.complete
    assert groups_read() == [[0, 12], [0], [0], [0], [12]]
    assert set(ran.failures("numbers")) == {1}
    assert sorted(ran.records("numbers")) == [0, 2, 3]
    file.write_text(good)
    assert engine.run("", TOGETHER).complete
