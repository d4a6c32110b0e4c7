"""Parts of a fold: what a scan takes from them, and what it reads by itself."""

import os

import pytest

from metadata.fold import FOLDED, append, fold
from metadata.record import Record, scan
from metadata.storage import Storage

AGO_S = 60  # so long before its part was written


class Counted(Storage):
    """A folder that notes which of its objects are read, and how often it is listed."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.read_names, self.listings = [], 0

    def read(self, name):
        self.read_names.append(name)
        return super().read(name)

    def entries(self, folder="", below=False):
        self.listings += 1
        return super().entries(folder, below)


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
    assert (found.folded, found.parts) == (False, 2)


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
    fold(folder, records)
    assert [entry.name for entry in folder.entries() if "records" in entry.name] == [FOLDED]
    folder.read_names.clear()
    found = scan(folder)
    assert (found.folded, found.parts) == (True, 0)
    assert found.records == {record.shard: [record] for record in records}
    assert folder.read_names == [FOLDED]


def test_parts_that_a_kill_left_beside_the_whole_change_nothing_and_are_folded_again(folder):
    records = [stored(folder, shard) for shard in range(3)]
    append(folder, 4, records[:2])
    part = folder.read("records-0004.parquet")
    fold(folder, records)
    folder.put("records-0004.parquet", part, point="fold")
    found = scan(folder)
    assert found.records == {record.shard: [record] for record in records}
    assert (found.folded, found.parts) == (False, 5)


def test_a_torn_part_costs_only_time(folder):
    records = [stored(folder, shard) for shard in range(4)]
    append(folder, 0, records[:2])
    append(folder, 1, records[2:])
    folder.put("records-0000.parquet", folder.read("records-0000.parquet")[:50], point="fold")
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
