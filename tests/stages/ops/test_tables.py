"""Files of a pool: ranges of Parquet rows, values fitted to a type, what an error becomes."""

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from metadata.storage import Storage
from pipeline.errors import RetryableError, ShardError
from stages.ops.tables import (
    BATCH_BYTES,
    BATCH_ROWS,
    failing_its_shard,
    first_reason,
    fit,
    in_batches,
    list_files,
    open_pool,
    parquet_rows,
    scan_parquet,
)


@pytest.mark.parametrize("shard_rows", [1, 3, 7, 1500, 5000])
def test_ranges_of_a_parquet_file_make_the_file(tmp_path, shard_rows):
    table = pa.table({"n": range(2600), "other": range(2600)})
    pq.write_table(table.slice(0, 13), tmp_path / "0.parquet", row_group_size=5)
    pq.write_table(table, tmp_path / "1.parquet", row_group_size=1100)
    storage = Storage(str(tmp_path))
    for file in list_files(str(tmp_path), (".parquet",), "pool"):
        sources, schema = scan_parquet(storage, file, shard_rows)
        assert schema == table.schema
        shards = [list(parquet_rows(storage, source, ["n"])) for source in sources]
        found = [n for shard in shards for part in shard for n in part["n"].to_pylist()]
        assert found == list(range(sources[0]["rows"]))
        sizes = [sum(map(len, shard)) for shard in shards]
        assert max(sizes) <= shard_rows
        assert {name for shard in shards for part in shard for name in part.column_names} == {"n"}


def test_only_the_row_groups_that_overlap_are_read(tmp_path):
    path = tmp_path / "0.parquet"
    pq.write_table(pa.table({"n": range(30)}), path, row_group_size=10, compression=None)
    broken = bytearray(path.read_bytes())
    for group in (0, 2):
        chunk = pq.read_metadata(path).row_group(group).column(0)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        broken[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(broken)
    source = {"path": "0.parquet", "start": 12, "stop": 18}
    (rows,) = parquet_rows(Storage(str(tmp_path)), source, ["n"])
    assert rows["n"].to_pylist() == list(range(12, 18))


@pytest.mark.parametrize(
    ("values", "dtype", "fitted", "misfit"),
    [
        (pa.array([1, 2**40, None]), pa.int32(), [1, None, None], [False, True, False]),
        (pa.array([1.0, 1.5, float("nan")]), pa.int32(), [1, None, None], [False, True, False]),
        ([1, float("nan"), None, "7"], pa.int32(), [1, None, None, 7], [False] * 4),
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
        (OSError("503"), RetryableError),
        (ShardError("a", "b", "c"), ShardError),
    ],
)
def test_what_goes_wrong_in_a_file_names_the_file_and_survives_pickling(raised, becomes):
    with pytest.raises(ShardError) as caught, failing_its_shard("b"):
        raise raised
    assert type(pickle.loads(pickle.dumps(caught.value))) is becomes
    assert caught.value.args[1] == "b"


def test_keys_in_a_uri_stay_out_of_what_is_shown():
    storage, pattern = open_pool("s3://KEY:SECRET@bucket/pool/*.csv?region=us-east-1")
    assert str(storage) == "s3://bucket/pool"
    assert pattern == "*.csv"
