"""Shards put together: their order, their tables, and what the engine asks of shards."""

import pickle

import pyarrow as pa
import pytest

from clipmill.stages.ops.tables.combined import Concatenated, Zipped, ZippedWithFiner

A, B = (pa.table({"uid": [f"{name}{i}" for i in range(3)], name: [0, 1, 2]}) for name in "ab")


def test_concatenated_one_comes_after_another(memory_shards):
    both = Concatenated((memory_shards(A, A[:1]), memory_shards(A[1:])))
    assert [len(table) for table in both] == [3, 1, 2]
    assert both.table(2)["a"].to_pylist() == [1, 2]
    with pytest.raises(IndexError):
        both.table(3)


def test_zipped_a_function_sees_partition_i_of_each(memory_shards):
    both = Zipped(put_side_by_side, (memory_shards(A, A[:1]), memory_shards(B, B[2:])))
    assert [table.column_names for table in both] == [["a", "b"]] * 2
    assert both.table(1).to_pydict() == {"a": [0], "b": [2]}


def test_zipped_a_shuffle_into_fewer_begins_again(memory_shards):
    both = Zipped(put_side_by_side, (memory_shards(A[:1], A[1:2]), memory_shards(*[B[:1]] * 4)))
    assert [table["a"].to_pylist() for table in both] == [[0], [1], [0], [1]]


def test_zipped_with_finer_a_partition_meets_those_of_its_keys_one_by_one(memory_shards):
    finer = memory_shards(*(B.slice(i % 3, 1) for i in range(4)))
    zipped = ZippedWithFiner(add_up, memory_shards(A[:1], A[1:2]), finer)
    assert [table.to_pydict() for table in zipped] == [{"a": [0], "b": [2]}, {"a": [1], "b": [1]}]


def add_up(a: pa.Table, parts) -> pa.Table:
    return pa.table({"a": a["a"], "b": [sum(part["b"][0].as_py() for part in parts)]})


def put_side_by_side(a: pa.Table, b: pa.Table) -> pa.Table:
    return pa.table({"a": a["a"], "b": b["b"]})


def test_they_nest_stream_select_and_travel(memory_shards):
    one = Zipped(put_side_by_side, (memory_shards(A), memory_shards(B)))
    both = pickle.loads(pickle.dumps(Concatenated((one, memory_shards(A)))))
    assert [len(batch) for batch in both.batches(0, 2)] == [2, 1]
    assert [table.column_names for table in both.select(["a"])] == [["a"]] * 2
    assert both.rows(0) == -1
