"""Files of a pool: values fitted to a type, what an error becomes."""

import pickle

import numpy as np
import pyarrow as pa
import pytest

from clipmill.metadata.globs import open_pool
from clipmill.pipeline.errors import RetryableError, ShardError
from clipmill.stages.ops.tables.pools import (
    BATCH_BYTES,
    BATCH_ROWS,
    failing_its_shard,
    first_reason,
    fit,
    in_batches,
)


@pytest.mark.parametrize(
    ("values", "dtype", "fitted", "misfit"),
    [
        (pa.array([1, 2**40, None]), pa.int32(), [1, None, None], [False, True, False]),
        (pa.array([1.0, 1.5, float("nan")]), pa.int32(), [1, None, None], [False, True, False]),
        ([1, float("nan"), None, "7"], pa.int32(), [1, None, None, 7], [False] * 4),
        ([2**64 - 1, 2**63 + 1, 2**64, -1], pa.uint64(), [2**64 - 1, 2**63 + 1, None, None],
         [False] * 2 + [True] * 2),
        ([float("nan"), "a", None], pa.string(), [None, "a", None], [False] * 3),
        (pa.array([float("nan"), 1.5]), pa.string(), [None, "1.5"], [False] * 2),
        ([float("nan"), "x", 1], pa.bool_(), [None, None, True], [False, True, False]),
        ([2**64 + 1, 7], pa.string(), [f"{2**64 + 1}", "7"], [False] * 2),
        ([2**64, 7, None], pa.float64(), [2.0**64, 7.0, None], [False] * 3),
        (pa.array(["5", "5.0", " 5 ", "x", ""]), pa.int32(), [5, 5, 5, None, None],
         [False] * 3 + [True] * 2),
        (pa.array([b"ok", b"\xff"]), pa.string(), ["ok", None], [False, True]),
        (pa.array([b"ok", b"\xff"], pa.large_binary()).view(pa.large_string()), pa.string(),
         ["ok", None], [False, True]),
        ([b"ok", "str", 3], pa.string(), ["ok", "str", "3"], [False] * 3),
        (pa.array([0.1], pa.float32()), pa.float32(), [np.float32(0.1)], [False]),
        (pa.array([[0.5]], pa.list_(pa.float32())), pa.list_(pa.float64()), [[0.5]], [False]),
        (pa.chunked_array([], pa.string()), pa.int32(), [], []),
        ([], pa.string(), [], []),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_null_and_spares_its_neighbours(values, dtype, fitted, misfit):
    found, marked = fit(values, dtype)
    assert found.type == dtype
    assert found.to_pylist() == fitted
    assert marked.to_pylist() == misfit


def test_a_batch_ends_at_its_rows_or_its_bytes():
    assert list(map(len, in_batches([0] * 2500, lambda _: 1))) == [BATCH_ROWS, BATCH_ROWS, 452]
    assert list(map(len, in_batches([0] * 5, lambda _: BATCH_BYTES // 2))) == [2, 2, 1]
    assert list(in_batches([], len)) == []


def test_the_first_reason_that_holds_is_given():
    yes, no = pa.array([True, True, False]), pa.array([False, True, False])
    assert first_reason({"b": no, "a": yes}).to_pylist() == ["a", "b", None]
    assert first_reason({"a": yes[:0]}).type == pa.dictionary(pa.int32(), pa.string())


@pytest.mark.parametrize(
    ("raised", "becomes"),
    [
        (pa.ArrowInvalid("cut"), ShardError),
        (KeyError("gone"), ShardError),
        (RecursionError("too deep"), ShardError),
        (MemoryError(), ShardError),
        (OSError("503"), RetryableError),
        (ShardError("a", "b", "c"), ShardError),
    ],
)
def test_what_goes_wrong_in_a_file_names_the_file_and_survives_pickling(raised, becomes):
    with pytest.raises(ShardError) as caught, failing_its_shard("b"):
        raise raised
    assert type(pickle.loads(pickle.dumps(caught.value))) is becomes
    assert caught.value.args[1] == "b"
    assert not caught.value.args[0].endswith(": ")


def test_keys_in_a_uri_stay_out_of_what_is_shown():
    storage, pattern = open_pool("s3://KEY:SECRET@bucket/pool/*.csv?region=us-east-1")
    assert str(storage) == "s3://bucket/pool"
    assert pattern == "*.csv"
