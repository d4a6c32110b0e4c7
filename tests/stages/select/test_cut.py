"""Digits order as values do; the n-th largest equals sorting."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipmill.stages.select._cut import (
    EVERYTHING,
    NOTHING,
    at_or_above,
    extend,
    next_digit,
    tie_digits,
    value_digits,
    value_key,
)
from clipmill.stages.select._top import falling

TYPES = [pa.float32(), pa.float64(), pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8()]
TYPES += [pa.uint16(), pa.uint32(), pa.uint64()]


def chunked(values: list, dtype: pa.DataType) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, dtype)])


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_digits_order_as_the_values_do(dtype):
    kind = np.dtype(dtype.to_pandas_dtype())
    if kind.kind == "f":
        tiny = np.finfo(kind).smallest_subnormal
        values = [-np.inf, -3e38, -1.0, -tiny, 0.0, tiny, 0.26, 1.0, 3e38, np.inf]
    else:
        info = np.iinfo(kind)
        values = sorted({info.min, info.min + 1, 0, 1, 100, info.max - 1, info.max})
    ranks = value_digits(chunked(values, dtype)).tolist()
    assert ranks == sorted(ranks)
    assert len({tuple(rank) for rank in ranks}) == len(values)


def test_negative_zero_equals_zero():
    minus, plus = value_digits(chunked([-0.0, 0.0], pa.float32())).tolist()
    assert minus == plus


def test_ties_rank_the_smaller_uid_higher_then_the_earlier_place():
    rows = pa.table(
        {
            "uid": pa.array([b"\0" * 15 + b"\1", b"\1" + b"\0" * 15, b"\xff" * 16, b"\xff" * 16]),
            "shard": pa.array([9, 0, 3, 70_000], pa.int32()),
            "position": pa.array([9, 0, 70_000, 3], pa.int32()),
        }
    ).cast(pa.schema({"uid": pa.binary(16), "shard": pa.int32(), "position": pa.int32()}))
    ranks = tie_digits(rows).tolist()
    assert ranks == sorted(ranks, reverse=True)
    assert len(ranks[0]) == 12


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 1), st.integers(0, 1)), max_size=30),
    st.sampled_from([pa.float16(), pa.float32(), pa.float64()]),
)
def test_falling_is_the_order_of_whole_ranks(drawn, dtype):
    rows = pa.table(
        {
            "uid": pa.array([bytes([it[1]]) * 16 for it in drawn], pa.binary(16)),
            "shard": pa.array([it[2] for it in drawn], pa.int32()),
            "position": pa.array(range(len(drawn)), pa.int32()),
        }
    )
    value = chunked([np.float64(it[0] / 2) for it in drawn], pa.float64()).cast(dtype)
    rank_ND = np.hstack([value_digits(value), tie_digits(rows)])
    wanted = sorted(range(len(drawn)), key=lambda row: rank_ND[row].tolist(), reverse=True)
    assert falling(value_key(value), rows).tolist() == wanted


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=60), st.data())
def test_the_nth_largest_is_that_of_sorting(values, data):
    nth = data.draw(st.integers(1, len(values)))
    rank_ND = value_digits(chunked(values, pa.uint64()))
    cut, left = EVERYTHING, nth
    while len(cut) < 4:
        cut, left = extend(cut, left, next_digit(rank_ND, cut))
    expected = sorted(values, reverse=True)[nth - 1]
    assert at_or_above(rank_ND, cut).tolist() == [value >= expected for value in values]


def test_everything_and_nothing():
    rank_ND = value_digits(chunked([0, 2**64 - 1], pa.uint64()))
    assert at_or_above(rank_ND, EVERYTHING).all()
    assert not at_or_above(rank_ND, NOTHING).any()
