"""Large states are merged by workers: the same result, one for the driver, resumed in the midst."""

import os
from contextlib import closing
from functools import partial

import numpy as np
import pytest

from clipmill.pipeline.engine import states
from clipmill.pipeline.executors.local import LocalExecutor
from tests.pipeline.engine.programs import added, always, store, wide

SHARDS = 32  # of the pool, where each has one row
CALLED: list[object] = []  # what the functions below did, in this process


@pytest.fixture
def reduced(engine):
    """The values of a stage that is one of the functions below, over shards of some rows."""

    def run(function="every_number", shard_rows=1, **more):
        CALLED.clear()
        stages = f"  it: {{uses: toy.program, from: numbers, function: '{__name__}:{function}'}}\n"
        return engine.run(stages, f"numbers.shard_rows={shard_rows}", **more)

    return run


@pytest.fixture
def all_merged(monkeypatch):
    """States of any size are merged by units, three at a time."""
    monkeypatch.setattr(states, "BY_DRIVER_BYTES", 0)
    monkeypatch.setattr(states, "MERGED", 3)


def every_number(inputs, ctx):
    joined = ctx.reduce(numbers_of, inputs.rows, appended)["all"]
    assert joined.tolist() == list(range(31)), "in the order of the shards"
    store(inputs.rows, ctx, lambda n: n * 0 + len(joined))


def numbers_of(rows):
    CALLED.append(len(rows))
    return {"all": rows["number"].to_numpy()}


def appended(one, other):
    CALLED.append("merged")
    if CALLED.count("merged") == 9 and not os.environ.get("CLIPMILL_TEST_MENDED", "1"):
        raise RuntimeError("the ninth")
    return {"all": np.concatenate([one["all"], other["all"]])}


def wide_sums(inputs, ctx):
    """Large sums: no one reads more than one of them but workers."""
    total = ctx.reduce(wide, inputs.rows, added)["sum"]
    store(inputs.rows, ctx, partial(always, total[7]))


def test_a_tree_of_units_merges_in_the_order_of_the_shards(reduced, all_merged):
    assert reduced().column("it", "value") == [31] * 31
    merges = SHARDS - 1
    assert CALLED.count("merged") == merges


def test_a_unit_has_at_least_as_many_shards_as_its_stage_says_and_there_are_at_most_256():
    assert states.spans_of(20, 8) == [[0, 8], [8, 16], [16, 20]]
    assert states.spans_of(3, 1) == [[0, 1], [1, 2], [2, 3]]
    assert len(states.spans_of(100_000, 8)) == 256
    assert states.spans_of(0, 8) == []


def test_small_states_are_merged_without_a_unit_more(reduced, monkeypatch):
    monkeypatch.setattr(states, "merge_some", None)
    assert reduced().column("it", "value") == [31] * 31
    assert len(CALLED) == SHARDS + SHARDS - 1


@pytest.mark.slow("large sums, of workers")
def test_the_driver_reads_one_large_state_whatever_the_shards(reduced, monkeypatch):
    read = []

    def counted(folder, name):
        state = states_read(folder, name)
        read.append(sum(array.nbytes for array in state.values()) if state else 0)
        return state

    states_read = states.read_state
    monkeypatch.setattr(states, "read_state", counted)
    with closing(LocalExecutor(1, with_main=False)) as executor:
        for shard_rows in (4, 1):
            read.clear()
            ran = reduced("wide_sums", shard_rows, executor=executor, out=f"of-{shard_rows}")
            assert ran.column("it", "value") == [sum(range(31))] * 31
            assert sum(read) <= states.BY_DRIVER_BYTES


def test_a_merge_that_is_stopped_goes_on_from_the_states_that_are_there(
    reduced, all_merged, monkeypatch, tmp_path
):
    monkeypatch.setenv("CLIPMILL_TEST_MENDED", "")
    assert "the ninth" in reduced().error("it")
    first = (*CALLED,)
    monkeypatch.setenv("CLIPMILL_TEST_MENDED", "1")
    assert reduced().column("it", "value") == [31] * 31
    assert first.count("merged") == 9
    assert "merged" in CALLED
    assert set(CALLED) == {"merged"}, "no shard was read again"
    assert CALLED.count("merged") == SHARDS - 1 - 8


def test_a_damaged_state_is_made_again_by_the_next_run(reduced, all_merged, monkeypatch, tmp_path):
    monkeypatch.setenv("CLIPMILL_TEST_MENDED", "")
    assert not reduced().complete
    monkeypatch.setenv("CLIPMILL_TEST_MENDED", "1")
    *_, last = sorted(tmp_path.glob("run/stages/it-*/calls-*/01-reduce.data/*.npz"))
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(data)
    assert "a damaged state" in reduced().error("it")
    assert reduced().column("it", "value") == [31] * 31
    assert CALLED[0] == 1, "the shard of that state, and no other"
    assert set(CALLED[1:]) == {"merged"}
