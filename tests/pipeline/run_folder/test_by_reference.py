"""States of shards as workers get them: all come back, and a call is no longer for many shards."""

import pickle
from functools import partial

import pytest

from clipmill.metadata.record import ShardState
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.local_shards import LocalShards
from clipmill.pipeline.engine.states import reduce_some
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.run_folder import rows as by_reference
from clipmill.pipeline.run_folder.masks import SelectMask
from clipmill.pipeline.run_folder.rows import BLOCK, ByReference, JoinedShards, PoolShards, Stored


def state(shard: int) -> ShardState:
    """As a shard with a second pass under a mask has it."""
    mask = ShardState(rows=7, files=(f"{shard}.parquet",), digest="m" * 32)
    source = {"file": f"/pool/{shard}.parquet", "digest": "d" * 64, "groups": [shard, None]}
    files = (f"{shard:06d}-{'a' * 16}.parquet", f"{shard:06d}.p1-{'b' * 16}.parquet")
    return ShardState(rows=shard, files=files, digest="c" * 32, mask=mask, source=source)


def pool(shards: int) -> PoolShards:
    states = tuple({"pool": state(shard), "more": state(shard + 1)} for shard in range(shards))
    return PoolShards({}, states, {}, "pool")


def sent(thing):
    """What a worker gets of it."""
    return pickle.loads(pickle.dumps(thing))


@pytest.mark.parametrize("shards", [0, 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_a_worker_reads_the_states_that_the_driver_has(shards, tmp_path):
    whole = pool(shards)
    got = sent(whole.by_reference(Storage(str(tmp_path)), "calls/rows")).states
    assert [got[shard] for shard in range(len(got))] == list(whole.states)
    assert isinstance(got, Stored) == (shards > BLOCK)
    for beyond in (shards, -shards - 1):
        with pytest.raises(IndexError):
            got[beyond]


def test_a_unit_reads_the_block_of_its_shard_and_no_other(tmp_path, monkeypatch):
    got = sent(pool(50 * BLOCK).by_reference(Storage(str(tmp_path)), "calls"))
    read = []
    monkeypatch.setattr(
        Storage, "read_at", lambda *given, at=Storage.read_at: read.append(given[3]) or at(*given)
    )
    assert [got.rows(shard) for shard in range(130, 140)] == list(range(130, 140))
    assert len(read) == 2
    assert sum(read) < (tmp_path / got.states.name).stat().st_size / 20


@pytest.mark.parametrize(
    "task",
    [
        lambda rows: partial(reduce_some, len, rows, max, "data"),
        lambda rows: partial(len, rows=LocalShards(rows, "here", 1)),
        lambda rows: partial(len, rows=JoinedShards((rows, rows.mapped(len)))),
        lambda rows: partial(len, mask=SelectMask(rows, Storage("export"))),
    ],
    ids=["a call", "kept rows", "a union", "a mask"],
)
def test_what_a_worker_is_sent_does_not_grow_with_the_shards(task, tmp_path):
    few, many = (
        len(pickle.dumps(task(pool(shards).by_reference(Storage(str(tmp_path)), "calls"))))
        for shards in (100, 1_000)
    )
    assert many - few < 10


def test_states_are_stored_once_whatever_is_made_of_the_rows(tmp_path):
    rows = pool(BLOCK + 1).by_reference(Storage(str(tmp_path)), "calls")
    for each in (rows, rows.mapped(len), rows.select([])):
        assert len(sent(each)) == BLOCK + 1
    (path,) = (tmp_path / "calls").iterdir()
    path.unlink()
    sent(rows)
    assert not path.exists()


def test_a_damaged_object_says_so(tmp_path):
    got = sent(ByReference(pool(BLOCK + 1).states, Storage(str(tmp_path)), "calls"))
    path = tmp_path / got.name
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:12], whole[:300] + b"?" + whole[301:]):
        path.write_bytes(damaged)
        by_reference.block_of.cache_clear()
        with pytest.raises(StageError, match="run again"):
            got[0], got[BLOCK]
