"""An index of uids against the uids: whatever is asked, and whatever byte of it has changed."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from clipmill.metadata import uid_index
from clipmill.metadata.storage import Storage
from clipmill.metadata.uid import halves
from clipmill.metadata.uid_index import put_index, runs_of, shards_with

ROWS = (7, 0, 30, 1, 22)
SHARDS = (3, 4, 7, 8, 9)


@pytest.fixture
def uids(monkeypatch):
    """By shard; some samples are in two shards, and some share their first half."""
    monkeypatch.setattr(uid_index, "LEAST_SHARDS", 2)
    monkeypatch.setattr(uid_index, "BLOCK_ROWS", 4)
    rng = np.random.default_rng(0)
    each = [[rng.bytes(16) for _ in range(rows)] for rows in ROWS]
    each[2][:3] = each[0][:3]
    each[4][:12] = [each[2][5][:8] + rng.bytes(8) for _ in range(12)]
    return dict(zip(SHARDS, each, strict=True))


@pytest.fixture
def stored(uids, tmp_path):
    """The folder and its one run."""
    (run,) = runs_of((shard, f"{shard}.parquet", len(each)) for shard, each in uids.items())
    every = pa.array([uid for each in uids.values() for uid in each], pa.binary(16))
    put_index(Storage(str(tmp_path)), run, halves(every)[:, 0].copy())
    assert (tmp_path / run.name).stat().st_size == run.size_bytes
    return Storage(str(tmp_path)), run


def holding(uids, low: bytes, high: bytes) -> set[int]:
    """The shards that the first 54 bits of a uid allow."""
    bits = [int.from_bytes(end[:8], "big") >> 10 for end in (low, high)]
    return {
        shard
        for shard, each in uids.items()
        if any(bits[0] <= int.from_bytes(uid[:8], "big") >> 10 <= bits[1] for uid in each)
    }


def ranges_of(uids):
    every = sorted(uid for each in uids.values() for uid in each)
    yield from ((uid, uid) for uid in every)
    yield from ((one, other) for one, other in pairwise(every))
    yield from ((uid[:1] + bytes(15), uid[:1] + b"\xff" * 15) for uid in every)
    yield from [(bytes(16), bytes(16)), (b"\xff" * 16, b"\xff" * 16), (bytes(16), b"\xff" * 16)]


def test_the_shards_are_those_that_hold_such_a_uid(uids, stored):
    for one in ranges_of(uids):
        assert set(shards_with(*stored, [one])) == holding(uids, *one)


def test_of_several_ranges_also_within_one_another_they_are_those_of_each(uids, stored):
    every = list(ranges_of(uids))
    for start in range(0, len(every), 5):
        some = every[start::17]
        expected = set().union(*(holding(uids, *one) for one in some))
        assert shards_with(*stored, some) == sorted(expected)


def test_a_uid_is_found_whichever_byte_of_the_index_has_changed(uids, stored):
    folder, run = stored
    data = folder.read(run.name)
    low = uids[9][15]
    for at in range(0, len(data), 5):
        changed = bytearray(data)
        changed[at] ^= 0x40
        folder.put(run.name, bytes(changed), point="write")
        assert shards_with(folder, run, [(low, low)]) in ([9], list(SHARDS))
    for size in range(0, len(data), 17):
        folder.put(run.name, data[:size], point="write")
        assert shards_with(folder, run, [(low, low)]) == list(SHARDS)


def test_without_an_index_or_with_other_data_it_is_all_shards(uids, stored):
    folder, run = stored
    files = ("other.parquet", *run.files[1:])
    (other,) = runs_of(zip(run.shards, files, run.rows, strict=True))
    assert shards_with(folder, other, [(bytes(16), bytes(16))]) == list(SHARDS)
    assert shards_with(folder, run, [(bytes(16), bytes(16))]) == []
    folder.delete(run.name)
    assert shards_with(folder, run, [(bytes(16), bytes(16))]) == list(SHARDS)


def test_only_two_parts_of_an_index_are_read_whatever_its_size(monkeypatch, tmp_path):
    folder, rows = Storage(str(tmp_path)), 100_000
    (run,) = runs_of([(shard, "", rows) for shard in range(30)])
    half_N = np.random.default_rng(0).integers(0, 1 << 64, 30 * rows, dtype=np.uint64)
    wanted = np.array(half_N[-1], ">u8").tobytes() + bytes(8)
    put_index(folder, run, half_N)
    sizes, read = [], Storage.read_opened

    def counted(self, file, at, size):
        sizes.append(size)
        return read(self, file, at, size)

    monkeypatch.setattr(Storage, "read_opened", counted)
    assert shards_with(folder, run, [(wanted, wanted)]) == [29]
    assert len(sizes) == 2
    assert sum(sizes) < 2 * uid_index.BLOCK_ROWS * 8


def test_runs_are_cut_by_shards_and_rows_and_few_shards_have_none(monkeypatch):
    few = [(shard, str(shard), 5) for shard in range(uid_index.LEAST_SHARDS)]
    assert runs_of(few) == []
    assert len(runs_of([*few, (99, "99", 5)])) == 1
    monkeypatch.setattr(uid_index, "MOST_SHARDS", 40)
    monkeypatch.setattr(uid_index, "MOST_ROWS", 150)
    sizes = [len(run.shards) for run in runs_of((n, str(n), 5) for n in range(100))]
    assert sizes == [30, 30, 30, 10]
    monkeypatch.setattr(uid_index, "MOST_ROWS", 1000)
    sizes = [len(run.shards) for run in runs_of((n, str(n), 5) for n in range(100))]
    assert sizes == [40, 40, 20]
    assert [run.rows for run in runs_of((n, str(n), 2000) for n in range(70))] == [(2000,)] * 70
