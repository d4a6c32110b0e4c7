"""Parts of a compaction: what a scan takes from them, and what it reads by itself."""

import io
import os
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.compaction import COMPACTED, append, compact
from clipmill.metadata.record import Record
from clipmill.metadata.records import table_of
from clipmill.metadata.scan import scan
from clipmill.metadata.storage import Storage

AGO_S = 60  # so long before its part was written


class Counted(Storage):
    """A folder that notes which of its objects are read, and how often it is listed."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.read_names, self.listings = [], 0

    def read(self, name):
        self.read_names.append(name)
        return super().read(name)

    def listing(self):
        self.listings += 1
        return super().listing()


@pytest.fixture
def folder(tmp_path) -> Counted:
    return Counted(str(tmp_path / "stage"))


def stored(folder, shard, rows=3, ago_s=AGO_S) -> Record:
    """A record, stored some time ago."""
    record = Record(
        shard=shard,
        data=None,
        size_bytes=0,
        sha256="",
        rows=rows,
        computed=rows,
        uid_sha256="u",
        parents={"root": "r"},
    )
    folder.put(record.name, record.to_json().encode(), point="record")
    _age(folder, record.name, ago_s)
    return record


def _age(folder, name, ago_s):
    path = folder.locate(name)
    then = os.stat(path).st_mtime - ago_s
    os.utime(path, (then, then))


def test_records_are_read_from_the_parts_and_newer_ones_one_by_one(folder):
    records = [stored(folder, shard) for shard in range(7)]
    append(folder, 0, records[:3])
    append(folder, 1, records[3:5])
    assert folder.listings == 0
    found = scan(folder)
    assert found.records == {record.shard: [record] for record in records}
    assert sorted(folder.read_names) == [
        "000005.json",
        "000006.json",
        "records-0000.parquet",
        "records-0001.parquet",
    ]
    assert (found.compacted, found.parts) == (False, 2)


@pytest.mark.parametrize("rows", [4, 400], ids=["same size", "another size"])
def test_a_record_that_was_stored_after_its_part_is_read_by_itself(folder, rows):
    append(folder, 0, [stored(folder, 0), stored(folder, 1)])
    newer = stored(folder, 1, rows, ago_s=-1)
    assert scan(folder).records[1] == [newer]
    assert "000001.json" in folder.read_names
    assert "000000.json" not in folder.read_names


def test_of_two_parts_the_later_one_counts(folder):
    append(folder, 0, [stored(folder, 0)])
    again = stored(folder, 0, rows=4)
    append(folder, 1, [again])
    assert scan(folder).records[0] == [again]
    assert "000000.json" not in folder.read_names


def test_a_whole_fold_takes_the_place_of_its_parts(folder):
    records = [stored(folder, shard) for shard in range(3)]
    append(folder, 0, records[:2])
    append(folder, 12_345, records[2:])
    compact(folder, table_of(records))
    assert [entry.name for entry in folder.entries() if "records" in entry.name] == [COMPACTED]
    folder.read_names.clear()
    found = scan(folder)
    assert (found.compacted, found.parts) == (True, 0)
    assert found.records == {record.shard: [record] for record in records}
    assert folder.read_names == [COMPACTED]


def test_parts_that_a_kill_left_beside_the_whole_change_nothing_and_are_folded_again(folder):
    records = [stored(folder, shard) for shard in range(3)]
    append(folder, 4, records[:2])
    part = folder.read("records-0004.parquet")
    compact(folder, table_of(records))
    folder.put("records-0004.parquet", part, point="compaction")
    found = scan(folder)
    assert found.records == {record.shard: [record] for record in records}
    assert (found.compacted, found.parts) == (False, 5)


def test_a_torn_part_costs_only_time(folder):
    records = [stored(folder, shard) for shard in range(4)]
    append(folder, 0, records[:2])
    append(folder, 1, records[2:])
    folder.put("records-0000.parquet", folder.read("records-0000.parquet")[:50], point="compaction")
    folder.read_names.clear()
    found = scan(folder)
    assert found.records == {record.shard: [record] for record in records}
    assert "000000.json" in folder.read_names
    assert "000002.json" not in folder.read_names


def test_a_part_does_not_outlive_its_records(folder):
    record, other = stored(folder, 0), stored(folder, 1)
    append(folder, 0, [record, other])
    folder.delete(record.name)
    assert scan(folder).records == {1: [other]}


def put_older(folder, name, records, clock=True):
    """A compaction as it was until November 2026: the records' texts."""
    entries = {entry.name: entry for entry in folder.entries()}
    texts = [record.to_json() for record in records]
    table = pa.table(
        {
            "name": [record.name for record in records],
            "size": pa.array([len(text) for text in texts], pa.int64()),
            "mtime_ns": pa.array(
                [entries[record.name].mtime_ns if clock else None for record in records], pa.int64()
            ),
            "json": texts,
        }
    )
    with io.BytesIO() as sink:
        pq.write_table(table, sink, compression="zstd")
        folder.put(name, sink.getvalue(), point="compaction")


@pytest.mark.parametrize(("name", "clock"), [(COMPACTED, True), ("records-0002.parquet", False)])
def test_an_older_versions_fold_is_read_and_put_anew_by_the_next_run(folder, name, clock):
    records = [stored(folder, shard) for shard in range(5)]
    put_older(folder, name, records[:4], clock)
    found = scan(folder)
    assert found.records == {record.shard: [record] for record in records}
    assert [it for it in folder.read_names if it.endswith("json")] == ["000004.json"]
    assert not found.compacted
    compact(folder, table_of(records))
    assert scan(folder).compacted


def test_of_an_older_versions_fold_a_text_that_is_no_record_counts_for_nothing(folder):
    record, other = stored(folder, 0), stored(folder, 1)
    put_older(folder, COMPACTED, [record, replace(other, shard=7)][:1])
    assert scan(folder).records == {0: [record], 1: [other]}
    torn = pq.read_table(pa.BufferReader(folder.read(COMPACTED)))
    torn = torn.set_column(3, "json", pa.array([record.to_json()[:-4]]))
    with io.BytesIO() as sink:
        pq.write_table(torn, sink)
        folder.put(COMPACTED, sink.getvalue(), point="compaction")
    assert scan(folder).records == {0: [record], 1: [other]}


def test_a_fold_of_other_columns_costs_only_time(folder):
    record = stored(folder, 0)
    compact(folder, table_of([record]))
    table = pq.read_table(pa.BufferReader(folder.read(COMPACTED)))
    for changed in (
        table.drop_columns(["sha256"]),
        table.set_column(0, "name", pa.array([7])),
        table.set_column(3, "shard", pa.array(["x"])),
    ):
        with io.BytesIO() as sink:
            pq.write_table(changed, sink)
            folder.put(COMPACTED, sink.getvalue(), point="compaction")
        found = scan(folder)
        assert found.records == {0: [record]}
        assert not found.compacted


def test_a_folded_record_that_is_gone_is_not_listed_and_does_not_count(folder):
    records = [stored(folder, shard) for shard in range(3)]
    compact(folder, table_of(records))
    folder.delete(records[1].name)
    found = scan(folder)
    assert found.records == {0: [records[0]], 2: [records[2]]}
    assert not found.compacted


def test_a_bit_that_flips_in_a_fold_changes_no_record(folder):
    records = [stored(folder, shard, rows=shard + 3) for shard in range(3)]
    compact(folder, table_of(records))
    whole = folder.read(COMPACTED)
    expected = {record.shard: [record] for record in records}
    pages = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for at in [*range(4, pages, 19), *range(pages, len(whole), 401)]:
        folder.put(COMPACTED, flipped(whole, at), point="compaction")
        assert scan(folder).records == expected, at


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
