"""Shuffles: which partition a row goes to, and that all of them come back from the files."""

from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine import shuffling
from clipmill.pipeline.engine.shuffling import (
    by_hash,
    by_home,
    put_index,
    runs_of,
    segment_bytes,
    split_run,
)
from clipmill.pipeline.run_folder import partitions
from clipmill.pipeline.run_folder.partitions import Partitions, blocks, read_ranges


def test_equal_keys_and_nulls_have_one_partition_each():
    keys = pa.table({"key": ["a", None, "b", "a", None, "c"]})
    part = by_hash("key", 1000, keys)
    assert part[0] == part[3]
    assert part[1] == part[4]
    assert len({part[0], part[1], part[2], part[5]}) == 4


def test_a_hash_does_not_depend_on_the_rows_beside_it():
    keys = pa.table({"key": [f"key {number}" for number in range(50)]})
    assert by_hash("key", 7, keys)[20:].tolist() == by_hash("key", 7, keys[20:]).tolist()


def test_a_row_goes_home_to_the_run_of_shards_that_has_its_own():
    starts = np.array([0, 3, 4])
    shards = pa.table({"shard": [0, 2, 3, 4, 9]})
    assert by_home(starts, shards).tolist() == [0, 0, 1, 2, 2]


# Runs and segments


def test_runs_are_of_neighbours_as_many_as_workers_want_and_no_more_than_rows_ask_for():
    few = runs_of([10_000] * 5)
    assert few == [[0, 1], [1, 2], [2, 3], [3, 4], [4, 5]]
    assert runs_of([10_000] * 100)[:2] == [[0, 6], [6, 12]]
    assert len(runs_of([10_000] * 10_000)) == 65
    many = runs_of([10_000] * 128_000)
    assert many[:2] == [[0, 750], [750, 1500]]
    assert len(many) == 171
    assert runs_of([]) == []


def test_a_segment_is_a_part_of_the_memory_that_a_stage_declares():
    assert segment_bytes(1) == 166_666_666
    assert segment_bytes(64) == 288_000_000


# Rows through files


@dataclass(frozen=True)
class Tables:
    """Shards in memory."""

    held: list[pa.Table] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.held)

    def table(self, index: int) -> pa.Table:
        return self.held[index]


def third(table: pa.Table) -> np.ndarray:
    return table["number"].to_numpy() % 3


def shuffled(tables, key, count, folder, most_bytes=1 << 30, runs=None) -> Partitions:
    """What the engine's shuffle makes of tables."""
    storage = Storage(str(folder))
    work = partial(split_run, Tables(tables), key, count, "data", most_bytes)
    results = [
        work(run, SimpleNamespace(folder=storage, key=f"{number:06d}-a"))
        for number, run in enumerate(runs or runs_of([len(table) for table in tables]))
    ]
    index = put_index(storage, "data", results, count)
    files = tuple(one["file"] for one in results for _ in range(one["segments"]))
    return Partitions(storage, "data", files, index, count)


@pytest.fixture(params=["narrow", "wide"])
def tables(request) -> list[pa.Table]:
    """Shards whose dictionaries and types differ, one of them empty."""
    rows = pa.table({"number": range(40), "reason": pa.array(["x", "y", None, "z"] * 10)})
    words = [
        rows.slice(start, size).set_column(
            1, "reason", rows["reason"].slice(start, size).dictionary_encode()
        )
        for start, size in ((0, 1), (1, 6), (7, 0), (7, 14), (21, 19))
    ]
    if request.param == "narrow":
        return words
    untyped = pa.array([None] * 14, pa.null())
    notes = [[f"note {n}" for n in range(len(table))] for table in words]
    return [
        table.append_column("note", untyped if index == 3 else pa.array(note, pa.string()))
        for index, (table, note) in enumerate(zip(words, notes, strict=True))
    ]


@pytest.mark.parametrize("runs", [None, [[0, 5]], [[0, 2], [2, 3], [3, 5]]])
@pytest.mark.parametrize("most_bytes", [1, 1 << 30])
def test_every_row_is_in_its_partition_in_the_order_of_the_shards(
    runs, most_bytes, tables, tmp_path
):
    parts = shuffled(tables, third, 4, tmp_path, most_bytes, runs)
    for number in range(4):
        chosen = [table.filter(pa.array(third(table) == number)) for table in tables]
        expected = pa.concat_tables(chosen, promote_options="default").unify_dictionaries()
        found = parts.table(number)
        assert found.schema == expected.schema
        assert found.to_pylist() == expected.to_pylist()
        assert all(column.num_chunks == 1 for column in found.columns)
    assert len(parts.table(3)) == 0


def test_the_same_rows_make_the_same_bytes_whatever_the_segments_before_them(tables, tmp_path):
    one, other = (shuffled(tables, third, 3, tmp_path / name) for name in "ab")
    for name in {*one.files, one.index}:
        assert one.folder.read(name) == other.folder.read(name)
    assert one.digest(0) == other.digest(0)
    assert one.digest(0) != one.digest(1)
    assert one.digest(0) != shuffled(tables[1:], third, 3, tmp_path / "c").digest(0)


def test_a_file_has_one_schema_and_no_piece_has_its_own(tmp_path):
    rows = pa.table({"number": range(4_000), "text": ["a"] * 4_000})
    parts = shuffled([rows], lambda table: table["number"].to_numpy() % 1000, 1000, tmp_path)
    data = parts.folder.read(parts.files[0])
    assert data.count(b"number") == 2  # where it begins, and once in its end
    piece = (len(data) - 1001 * 8) / 1000
    assert piece < 450, "rows, and what Arrow needs of a batch"


# Damage


def test_a_changed_byte_is_noticed_before_rows_are_decoded(tables, tmp_path):
    parts = shuffled(tables, third, 4, tmp_path, runs=[[0, 2], [2, 5]])
    whole, noticed = list(parts.tables(0, 4)), set()
    for name in (*parts.files, parts.index):
        path, data = tmp_path / name, parts.folder.read(name)
        for place in range(0, len(data), 41):
            changed = bytearray(data)
            changed[place] ^= 1 << place % 8
            path.write_bytes(changed)
            partitions.heads_of.cache_clear()
            try:
                assert list(parts.tables(0, 4)) == whole  # of bytes that a reader needs not
            except DamagedError as damaged:
                noticed.add((name, damaged.name))
        path.write_bytes(data)
    assert noticed == {(name, parts.index) for name in (*parts.files, parts.index)}


def test_a_file_whose_end_is_changed_makes_no_index(tmp_path):
    rows = [pa.table({"number": range(9)})]
    folder = Storage(str(tmp_path))
    work = partial(split_run, Tables(rows), third, 4, "data", 1 << 30, [0, 1])
    result = work(SimpleNamespace(folder=folder, key="000000-a"))
    path = tmp_path / result["file"]
    data = bytearray(path.read_bytes())
    data[result["at"] + 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedError, match="not as it was stored"):
        put_index(folder, "data", [result], 4)


# Reading


def test_neighbours_are_read_together_and_each_range_once(tables, tmp_path, monkeypatch):
    parts = shuffled(tables, third, 4, tmp_path, runs=[[0, 2], [2, 5]])
    alone = [parts.table(number) for number in range(4)]
    read: list[list] = []
    monkeypatch.setattr(
        partitions, "read_ranges", lambda *of: read.append(of[1]) or read_ranges(*of)
    )
    assert list(parts.tables(0, 4)) == alone
    assert len(read) == 1
    monkeypatch.setattr(partitions, "AHEAD_BYTES", 1)
    read.clear()
    assert list(parts.tables(0, 3)) == alone[:3]
    assert len(read) == 3


def test_blocks_hold_neighbours_up_to_so_many_bytes_and_one_at_least():
    offsets_PS = np.array([[0, 5], [10, 5], [10, 5], [10, 25], [11, 26], [11, 27]])
    assert blocks(offsets_PS, 1000) == [(0, 5)]
    assert blocks(offsets_PS, 10) == [(0, 2), (2, 3), (3, 5)]
    assert blocks(offsets_PS, 1) == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
    assert blocks(offsets_PS[:1], 10) == []


def test_ranges_of_an_object_store_are_read_several_at_once_and_in_order(tmp_path, monkeypatch):
    storage = Storage(str(tmp_path))
    storage.put("file", bytes(range(200)), point="rename")
    ranges = [("file", at, size) for at, size in ((150, 9), (3, 0), (7, 2), (0, 5))] * 9
    expected = [bytes(range(at, at + size)) for _, at, size in ranges]
    assert read_ranges(storage, ranges) == expected
    waits = waiting_reads(monkeypatch)
    storage.is_local = False
    assert read_ranges(storage, ranges) == expected
    assert waits.most > 1


def test_an_object_of_a_store_is_opened_once_whatever_is_read_of_it(tmp_path, monkeypatch):
    storage = Storage(str(tmp_path))
    storage.put("file", bytes(range(200)), point="rename")
    storage.is_local = False
    opened, whole = [], Storage.open
    monkeypatch.setattr(
        Storage, "open", lambda self, name: opened.append(name) or whole(self, name)
    )
    monkeypatch.setattr(partitions, "READERS", 1)
    for at in range(5):
        read_ranges(storage, [("file", at, 1), ("file", at + 1, 1)])
    assert opened == ["file"]


def waiting_reads(monkeypatch) -> SimpleNamespace:
    """Reads that wait until a second one has begun, as far as there is one; the most at once."""
    import threading

    seen, whole = SimpleNamespace(most=0, now=0), Storage.read_opened
    lock, two = threading.Lock(), threading.Event()

    def read(self, *of):
        with lock:
            seen.now += 1
            seen.most = max(seen.most, seen.now)
            if seen.now > 1:
                two.set()
        two.wait(5)
        try:
            return whole(self, *of)
        finally:
            with lock:
                seen.now -= 1

    monkeypatch.setattr(Storage, "read_opened", read)
    return seen


def test_a_segment_larger_than_memory_allows_is_cut_and_no_rows_are_lost(tmp_path):
    shards = [pa.table({"number": range(start, start + 100)}) for start in range(0, 1000, 100)]
    parts = shuffled(shards, third, 3, tmp_path, most_bytes=1700, runs=[[0, 10]])
    assert len(parts.files) == 5, "two shards of 800 bytes each"
    assert pc.sum(pa.chunked_array([t["number"].chunk(0) for t in parts.tables(0, 3)])).as_py() == (
        499_500
    )
    assert shuffling.SEGMENT_BYTES > 1700
