"""Records, the compaction and the scan: what counts as finished."""

import json
import os
from dataclasses import replace

import pytest

from clipmill.metadata.compaction import compact
from clipmill.metadata.record import Record, ShardState, data_name, parsed, record_name, state_of
from clipmill.metadata.records import table_of
from clipmill.metadata.scan import scan
from clipmill.metadata.storage import Storage


@pytest.fixture
def folder(tmp_path) -> Storage:
    return Storage(str(tmp_path / "stage"))


def made(folder: Storage, shard: int, number: int = 0, text: str = "data", **more) -> Record:
    """A stored record with its data."""
    data = f"{shard}-{number}-{text}"
    folder.put(data, text.encode(), point="rename")
    record = Record(
        shard=shard,
        number=number,
        data=data,
        size_bytes=len(text),
        sha256=text,
        rows=3,
        computed=3,
        uid_sha256="u",
        parents={"root": "r"},
        **more,
    )
    folder.put(record.name, record.to_json().encode(), point="record")
    return record


def test_names():
    assert record_name(7) == "000007.json"
    assert record_name(1_234_567, 2) == "1234567.p2.json"
    assert data_name(7, 0, "abcdef0123456789ff") == "000007-abcdef0123456789.parquet"
    assert data_name(7, 1, "abcdef0123456789ff") == "000007.p1-abcdef0123456789.parquet"


def test_a_record_survives_its_json(folder):
    record = made(folder, 3, counts={"": 2, "bad": 1}, source={"file": "x"}, mask="m")
    assert Record.from_json(record.to_json()) == record


def test_a_record_with_any_bit_changed_is_torn_and_one_of_before_the_seal_is_read(folder):
    record = made(folder, 3, counts={"": 2, "bad": 1})
    stored = folder.read(record.name)
    assert parsed(record.name, stored) == record
    older = json.dumps(json.loads(stored)["value"])
    assert parsed(record.name, older) == record
    for at in range(8 * len(stored)):
        changed = bytearray(stored)
        changed[at // 8] ^= 1 << at % 8
        assert parsed(record.name, bytes(changed)) is None, bytes(changed)


def test_a_torn_record_is_told_and_the_fold_says_what_it_was(folder):
    record, other = made(folder, 0), made(folder, 1)
    compact(folder, table_of([record, other]))
    text = folder.read(record.name).replace(b'"rows":3', b'"rows":4')
    folder.put(record.name, text, point="record")
    found = scan(folder)
    assert (found.records, found.torn, found.lost) == ({1: [other]}, (record.name,), [record])
    assert not found.compacted


@pytest.mark.parametrize("source", [{"x": float("inf")}, {"file": "\udcff.tar"}, {"x": 10**30}])
def test_a_source_may_hold_what_json_itself_has_no_words_for(folder, source):
    record = made(folder, 3, source=source)
    compact(folder, table_of([record]))
    assert scan(folder).records == {3: [record]}


def test_a_scan_finds_every_pass_in_order(folder):
    first, second = made(folder, 0), made(folder, 0, 1)
    other = made(folder, 5)
    found = scan(folder)
    assert found.records == {0: [first, second], 5: [other]}
    assert (found.failures, found.manifest, found.compacted) == ({}, None, False)


def test_passes_end_at_the_first_that_is_missing(folder):
    first = made(folder, 0)
    made(folder, 0, 2)
    made(folder, 1, 1)
    assert scan(folder).records == {0: [first]}


TEARS = [
    "data missing",
    "data missing and less than nothing",
    "data short",
    "record torn",
    "record of brackets",
    "record alien",
    "record huge",
    "record odd",
]


@pytest.mark.parametrize("tear", TEARS)
def test_a_record_that_is_not_as_it_says_does_not_count(folder, tear):
    record, other = made(folder, 0), made(folder, 1)
    if tear == "data missing":
        folder.delete(record.data)
    elif tear == "data missing and less than nothing":
        folder.delete(record.data)
        less = replace(record, size_bytes=-1).to_json()
        folder.put(record.name, less.encode(), point="record")
    elif tear == "data short":
        folder.put(record.data, b"dat", point="rename")
    elif tear == "record torn":
        folder.put(record.name, record.to_json().encode()[:-5], point="record")
    elif tear == "record of brackets":
        deep = b'{"source": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
        folder.put(record.name, deep, point="record")
    elif tear == "record alien":
        folder.put(record.name, b'{"shard": 0}', point="record")
    else:
        changed = replace(
            record, **{"record huge": {"rows": 10**30}, "record odd": {"data": "\ud800"}}[tear]
        )
        folder.put(record.name, changed.to_json().encode(), point="record")
    assert scan(folder).records == {1: [other]}


def test_folded_records_are_read_from_the_fold_and_newer_ones_one_by_one(folder):
    records = [made(folder, shard) for shard in range(3)]
    compact(folder, table_of(records))
    found = scan(folder)
    assert found.compacted
    assert found.records == {record.shard: [record] for record in records}
    newer = made(folder, 1, text="other data")
    again = scan(folder)
    assert not again.compacted
    assert again.records[1] == [newer]


def test_a_fold_does_not_outlive_its_data(folder):
    record = made(folder, 0)
    compact(folder, table_of([record]))
    folder.delete(record.data)
    assert scan(folder).records == {}
    folder.delete(record.name)
    made(folder, 1)
    assert set(scan(folder).records) == {1}


def test_a_torn_fold_costs_only_time(folder):
    record = made(folder, 0)
    compact(folder, table_of([record]))
    folder.put("records.parquet", folder.read("records.parquet")[:50], point="compaction")
    found = scan(folder)
    assert found.records == {0: [record]}
    assert not found.compacted


def test_a_name_that_is_no_text_is_nobodys(folder):
    record = made(folder, 0)
    for name in (b"\xff.json", b"000001\xff.json", b".tmp-000002.json"):
        with open(os.path.join(os.fsencode(folder.path), name), "wb") as file:
            file.write(b"x")
    assert scan(folder).records == {0: [record]}


def test_a_torn_manifest_or_failure_is_none(folder):
    folder.put("manifest.json", b'{"shards": ', point="manifest")
    folder.put("000001.failed.json", b'{"shard": 1', point="failed")
    found = scan(folder)
    assert found.manifest is None
    assert found.failures == {}
    assert found.torn == ("manifest.json",)


def test_a_scan_of_nothing_is_empty(folder):
    found = scan(folder)
    assert (found.records, found.failures, found.manifest) == ({}, {}, None)


def test_a_shards_digest_is_that_of_its_bytes_its_passes_and_its_mask(folder):
    one, two = made(folder, 0, text="one"), made(folder, 0, 1, text="two")
    mask = ShardState(rows=3, files=("m",), digest="mask")
    digests = {
        state_of([one], None).digest,
        state_of([one, two], None).digest,
        state_of([one], mask).digest,
    }
    assert len(digests) == 3
    assert state_of([one], None).digest == "one"
    assert state_of([one, two], None).files == (one.data, two.data)
