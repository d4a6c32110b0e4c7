"""ExactDuplicate: one row of each set of equal bytes stays, and every other one names it."""

import itertools

import numpy as np
import pyarrow as pa

from pipeline.dataset import Inputs
from stages.dedup.exact import ExactDuplicate, name_keeper

ROWS = [  # uid, sha256, expected keeper
    ("c", "one", "a"),
    ("a", "one", None),
    ("d", None, None),
    ("b", "two", None),
    ("e", None, None),
    ("f", "one", "a"),
]


def uid(letter: str | None) -> bytes | None:
    return letter and letter.encode() * 16


def table(rows: list) -> pa.Table:
    return pa.table(
        {
            "uid": pa.array([uid(row[0]) for row in rows], pa.binary(16)),
            "sha256": pa.array([row[1] for row in rows], pa.string()),
        }
    )


def test_the_least_uid_stays_and_the_others_name_it(memory_shards, memory_context):
    ctx = memory_context()
    ExactDuplicate().run(Inputs(rows=memory_shards(table(ROWS[:2]), table(ROWS[2:]))), ctx)
    out = pa.concat_tables(ctx.stored)
    assert out["duplicate_of"].to_pylist() == [uid(keeper) for _, _, keeper in ROWS]
    no_digest = [sha256 is None for _, sha256, _ in ROWS]
    assert out["reason"].to_pylist() == ["no_sha256" if n else None for n in no_digest]


def test_the_order_of_rows_does_not_matter(memory_shards):
    rows = memory_shards(table([*ROWS, ("a", "one", None)]))[0]
    expected = sorted(map(repr, name_keeper(rows).to_pylist()))
    for order in itertools.islice(itertools.permutations(range(len(rows))), 0, 5040, 97):
        assert sorted(map(repr, name_keeper(rows.take(order)).to_pylist())) == expected


def test_of_a_repeated_uid_with_equal_bytes_the_first_in_the_pool_stays(memory_shards):
    rows = pa.concat_tables(memory_shards(*[table([("a", "one"), ("a", "one")])] * 2))
    keepers = name_keeper(rows.take([2, 3, 1, 0]))["duplicate_of"].to_pylist()
    assert keepers == [uid("a")] * 3 + [None]


def test_a_repeated_uid_with_other_bytes_is_no_duplicate(memory_shards):
    (rows,) = memory_shards(table([("a", "one"), ("a", "two")]))
    assert name_keeper(rows)["duplicate_of"].null_count == 2


def test_uids_are_ordered_by_bytes_past_0x7f(memory_shards):
    (rows,) = memory_shards(table([("a", "one"), ("a", "one")]))
    high = pa.array([b"\xff" * 16, b"\x01" * 16], pa.binary(16))
    rows = rows.set_column(0, "uid", high)
    assert name_keeper(rows)["duplicate_of"].to_pylist() == [b"\x01" * 16, None]


def test_an_empty_partition_keeps_its_types(memory_shards):
    (rows,) = memory_shards(table([]))
    out = name_keeper(rows).schema
    assert out.field("duplicate_of").type == pa.binary(16)
    assert out.field("reason").type == pa.dictionary(pa.int32(), pa.string())


def test_keepers_equal_a_plain_dictionary(memory_shards, memory_context):
    rng = np.random.default_rng(0)
    rows = [(chr(97 + u), f"{s}") for u, s in rng.integers(0, (26, 12), (300, 2))]
    ctx = memory_context()
    parts = [table(rows[start : start + 70]) for start in range(0, 300, 70)]
    ExactDuplicate().run(Inputs(rows=memory_shards(*parts)), ctx)
    first: dict = {}
    for i, (letter, digest) in enumerate(rows):
        first[digest] = min(first.get(digest, (letter, i)), (letter, i))
    expected = [
        None if first[digest] == (letter, i) else uid(first[digest][0])
        for i, (letter, digest) in enumerate(rows)
    ]
    assert pa.concat_tables(ctx.stored)["duplicate_of"].to_pylist() == expected
