"""The keep order: exact in every type, null and NaN last, then uid, then place."""

import numpy as np
import pyarrow as pa
import pytest

from clipmill.stages.ops.tables.keeper import SIGN, WORST, Keep, best_first, preference

NAN = float("nan")


def ranked(values: pa.Array, order: str) -> list[int]:
    rank = preference(Keep(column="it", order=order), pa.table({"it": values}))
    return best_first(in_place(rank)).tolist()


def in_place(rank: pa.ListArray) -> pa.Table:
    """Rows of one uid, in this order."""
    uid, place = pa.array([bytes(16)] * len(rank), pa.binary(16)), np.arange(len(rank))
    return pa.table({"uid": uid, "shard": place, "position": place, "preference": rank})


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_the_worst_number_stays_before_a_row_without_one(order):
    assert ranked(pa.array([None, 0, 2**64 - 1], pa.uint64()), order)[-1] == 0


@pytest.mark.parametrize(
    ("values", "ascending"),
    [
        (
            pa.array([2.5, -1, None, 0, -3, NAN, 1e-300, float("-inf")], pa.float64()),
            [7, 4, 1, 3, 6, 0],
        ),
        (pa.array([2.5, -1, None, 0], pa.float32()), [1, 3, 0]),
        (pa.array([2**53 + 1, 2**53, -5, None], pa.int64()), [2, 1, 0]),
        (pa.array([2**63 - 1, 2**63 - 2, 1 - 2**63, -(2**63), None]), [3, 2, 1, 0]),
        (pa.array([2**64 - 1, 2**64 - 2, 2**63, 1, 0, None], pa.uint64()), [4, 3, 2, 1, 0]),
        (pa.array([True, False, None]), [1, 0]),
    ],
    ids=["float64", "float32", "int64", "int64's ends", "uint64", "bool"],
)
def test_values_are_ordered_exactly_and_rows_without_one_come_last(values, ascending):
    assert ranked(values, "asc")[: len(ascending)] == ascending
    assert ranked(values, "desc")[: len(ascending)] == ascending[::-1]


def test_minus_zero_is_zero():
    assert ranked(pa.array([0.0, -0.0, 0.0]), "asc") == [0, 1, 2]
    assert ranked(pa.array([0.0, -0.0, 0.0]), "desc") == [0, 1, 2]


def test_numbers_and_truth_values_have_an_order_and_nothing_else_has():
    column = Keep(column="it", order="asc").reads
    assert column.name == "it"
    assert all(
        column.accepts(dtype) for dtype in (pa.uint64(), pa.int8(), pa.float32(), pa.bool_())
    )
    assert not any(
        column.accepts(dtype) for dtype in (pa.string(), pa.binary(), pa.list_(pa.int8()))
    )


def test_each_column_in_turn_has_its_preference_and_none_is_none():
    rows = pa.table({"a": pa.array([3, 1], pa.uint64()), "b": [None, True]})
    a, b = Keep(column="a", order="asc"), Keep(column="b", order="desc")
    both = preference((a, b), rows)
    assert [(x, y == WORST) for x, y in both.to_pylist()] == [(3, True), (1, False)]
    assert preference((), rows).to_pylist() == preference(None, rows).to_pylist() == [[], []]


def test_rows_that_an_earlier_version_ranked_are_compared_with_later_ones():
    """A killed stage goes on from its journal: one number a column, WORST without a value."""
    earlier = pa.array([[WORST], [SIGN + 7], [WORST - 1]], pa.list_(pa.uint64()))
    values = pa.array([6, None, 2**63 - 1])
    later = preference(Keep(column="it", order="asc"), pa.table({"it": values}))
    assert best_first(in_place(pa.concat_arrays([earlier, later]))).tolist() == [3, 1, 2, 5, 0, 4]


def test_ties_go_to_the_least_uid_and_then_to_the_first_place():
    uid = pa.array([b"\xff" * 16, b"\x01" * 16, b"\x01" * 16, b"\x00" * 16], pa.binary(16))
    place = {"shard": pa.array([0, 1, 0, 3]), "position": pa.array([0, 0, 5, 0])}
    rank = pa.array([[0], [0], [0], [1]], pa.list_(pa.uint64()))
    rows = pa.table({"uid": uid, **place, "preference": rank})
    assert best_first(rows).tolist() == [2, 1, 0, 3]
