"""Records as columns: the same as a dictionary of them, whatever is put and asked."""

import random

import numpy as np
import pyarrow as pa
import pytest

from clipmill.metadata import records as columns
from clipmill.metadata.record import Record
from clipmill.metadata.records import (
    RECORD,
    Records,
    are_made_of,
    counted,
    records_of,
    rows_by_reason,
    table_of,
)


def made(shard, number=0, **more) -> Record:
    told = {
        "data": f"{shard:06d}-{number:016x}.parquet",
        "size_bytes": 7 * shard,
        "sha256": f"{number:064x}",
        "rows": 3,
        "computed": 3 - number % 2,
        "uid_sha256": "u",
        "parents": {"root": f"r{shard}"},
        "counts": {"": 2, "bad": 1},
    }
    return Record(shard=shard, number=number, **{**told, **more})


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Few are objects at a time, so that all that follows crosses a block."""
    monkeypatch.setattr(columns, "BLOCK", 4)
    monkeypatch.setattr(columns, "NEWER", 5)


def test_records_come_back_from_columns_as_they_were():
    some = [
        made(0),
        made(1, data=None, mask="m", parents={}, counts={}),
        made(2, source={"file": "a\udcff", "x": float("inf"), "z": [10**30]}),
        made(3, seconds=0.1, attempts=4, page_checksums=True, parents={"b": "1", "a": "2"}),
    ]
    assert records_of(table_of(some)) == some
    assert RECORD.names == list(Record.__slots__)


def test_what_was_put_is_as_in_a_dictionary_of_all():
    draw = random.Random(5)
    shards = draw.sample(range(200), 90)
    known = {shard: [made(shard, n) for n in range(draw.choice([1, 1, 2, 3]))] for shard in shards}
    every = [record for records in known.values() for record in records]
    draw.shuffle(every)
    records = Records(table_of([*every, made(300, 1), made(shards[0], 7)]))  # 0, or one between
    for step in range(60):
        shard = draw.randrange(210)
        if step % 3:
            known[shard] = [made(shard, n, rows=step) for n in range(draw.choice([1, 2]))]
            records.put(shard, known[shard])
        assert records.get(shard) == known.get(shard)
        assert (shard in records) == (shard in known) == (np.int64(shard) in records)
        if step % 10 == 0:
            assert records == known
            assert list(records) == sorted(known)
    assert len(records) == len(known)
    gone = draw.sample(sorted(known), 20)
    left = {shard: held for shard, held in known.items() if shard not in gone}
    assert records.without(gone) == left
    assert records == known


def test_columns_of_some_shards_are_those_of_their_passes_in_order():
    records = Records(table_of([made(3), made(1), made(1, 1), made(8, 1), made(8), made(8, 2)]))
    assert records.shards.tolist() == [1, 3, 8]
    assert records_of(records.table(np.array([1, 8]))) == [*records[1], *records[8]]
    assert records_of(records.table(records.shards)) == [*records[1], *records[3], *records[8]]
    assert records_of(records.first(np.array([3, 8]))) == [records[3][0], records[8][0]]
    assert records.passes(np.array([0, 1, 2, 3, 8, 9])).tolist() == [0, 2, 0, 1, 3, 0]


def test_nothing_is_held_of_nothing():
    records = Records(RECORD.empty_table())
    assert records == {}
    assert 0 not in records
    assert records.passes(np.array([0, 5])).tolist() == [0, 0]
    assert rows_by_reason(records.first(records.shards)) == {}


def test_objects_are_made_columns_before_they_are_many(monkeypatch):
    made_columns = []

    def counting(some):
        some = list(some)
        made_columns.append(len(some))
        return table_of(some)

    monkeypatch.setattr(columns, "table_of", counting)
    records = Records(RECORD.empty_table())
    for shard in range(2000):
        records.put(shard, [made(shard)])
    assert len(made_columns) < 40  # a quarter more each time
    assert len(records._newer) <= 500
    assert sum(made_columns) + len(records._newer) == 2000


@pytest.mark.parametrize(
    ("parents", "found"),
    [
        ({"root": "r1"}, [False, True, False]),
        ({"root": ["r0", "r1", "r2"]}, [True, True, False]),
        ({"root": ["r0", None, "r2"]}, [True, False, False]),
        ({"root": ["r0", "r1", "r2"], "also": "x"}, [False, False, True]),
        ({}, [False, False, False]),
    ],
)
def test_a_record_is_made_of_the_parents_that_it_names_and_no_others(parents, found):
    some = [made(0), made(1), made(2, parents={"also": "x", "root": "r2"})]
    given = {
        name: pa.array(of, pa.string()) if isinstance(of, list) else of
        for name, of in parents.items()
    }
    assert are_made_of(table_of(some), given).tolist() == found


def test_rows_are_counted_by_record_and_by_reason():
    counts = [{"": 5, "bad": 2}, {}, {"late": 1, "": 0}, {"bad": 1}]
    table = table_of([made(shard, counts=of) for shard, of in enumerate(counts)])
    assert counted(table).tolist() == [7, 0, 1, 1]
    assert counted(table.filter(pa.array([False, False, True, True]))).tolist() == [1, 1]
    assert rows_by_reason(table) == {"": 5, "bad": 3, "late": 1}
    assert list(rows_by_reason(table)) == ["", "bad", "late"]
