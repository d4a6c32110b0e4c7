"""Rows of Parquet files: cut into shards, each row group read once, the same however it is cut."""

from functools import partial
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.storage import Storage
from clipmill.stages.ops.tables import parquet_rows as module
from clipmill.stages.ops.tables.parquet_rows import (
    joined,
    parquet_rows,
    rows_at_once,
    scan_parquet,
    width,
)
from clipmill.stages.ops.tables.pools import list_files


def shards_of(storage: Storage, group, columns=("n",)) -> list[list[list[int]]]:
    """The batches of each source of a group."""
    return [
        [table["n"].to_pylist() for table in tables]
        for tables in parquet_rows(storage, group, list(columns), batch_rows=64)
    ]


@pytest.mark.parametrize("shard_rows", [3, 150, 1500])
def test_sources_make_the_file_with_the_same_batches_read_alone_or_together(tmp_path, shard_rows):
    table = pa.table({"n": range(700), "other": range(700)})
    pq.write_table(table.slice(0, 13), tmp_path / "0.parquet", row_group_size=5)
    pq.write_table(table, tmp_path / "1.parquet", row_group_size=275)
    pq.write_table(table.slice(0, 0), tmp_path / "2.parquet")
    storage = Storage(str(tmp_path))
    for rows, file in zip((13, 700, 0), list_files(str(tmp_path), (".parquet",), "p"), strict=True):
        groups, schema = scan_parquet(storage, file, shard_rows)
        assert schema == table.schema
        together = [shard for group in groups for shard in shards_of(storage, group)]
        alone = [shard for s in chain(*groups) for shard in shards_of(storage, [s])]
        assert alone == together == shards_of(storage, [*chain(*groups)])
        for group in (*groups, [*chain(*groups)]):
            rest = group[1::2]  # what a killed run left of it
            assert not rest or shards_of(storage, rest) == [
                shard for source in rest for shard in shards_of(storage, [source])
            ]
        assert list(chain.from_iterable(chain.from_iterable(together))) == list(range(rows))
        sizes = [sum(map(len, shard)) for shard in together]
        assert max(sizes) <= shard_rows
        assert all(size == shard_rows for size in sizes[:-1])


def bomb(tmp_path, rows: int, is_dictionary: bool = False) -> Storage:
    """One value of 100 kB in every row, and once in the file."""
    text = pa.array(["x" * 100_000] * rows)
    text = text.dictionary_encode() if is_dictionary else text
    table = pa.table({"n": range(rows), "text": text})
    pq.write_table(table, tmp_path / "0.parquet")
    return Storage(str(tmp_path))


def read(storage: Storage, rows: int) -> list[pa.Table]:
    source = {"path": "0.parquet", "start": 0, "stop": rows}
    return [it for tables in parquet_rows(storage, [source], ["n", "text"], 64) for it in tables]


def test_rows_that_would_take_too_much_are_read_a_few_at_a_time(tmp_path, monkeypatch):
    storage = bomb(tmp_path, 200)
    whole = read(storage, 200)
    assert list(map(len, whole)) == [64, 64, 64, 8]
    monkeypatch.setenv("CLIPMILL_MAX_BATCH_BYTES", "2000000")
    monkeypatch.setenv("CLIPMILL_MAX_PARQUET_RATIO", "1000000")
    few = read(storage, 200)
    assert list(map(len, few)) == [32, 32] * 3 + [8]
    assert pa.concat_tables(few) == pa.concat_tables(whole)


def test_vectors_of_one_width_are_read_whole_batches_at_a_time(tmp_path, monkeypatch):
    """By their chunk's size, as texts are, 64 rows would be read 16 at a time."""
    vector = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(256_000, np.float32)), 256)
    table = pa.table({"n": range(1000), "vector": vector, "text": ["a"] * 1000})
    pq.write_table(table, tmp_path / "0.parquet", compression=None)
    with pq.ParquetFile(tmp_path / "0.parquet") as file:
        rows_of = partial(rows_at_once, file, [0], ["n", "vector", "text"], 64)
        assert rows_of(64 * 1032) == 64
        assert rows_of(64 * 1032 - 1) == 32
        assert rows_at_once(file, [0], ["text"], 64, 64) == 16  # one value may be all of them
    pq.write_table(pa.table({"text.en": ["a"] * 1000}), tmp_path / "1.parquet")
    with pq.ParquetFile(tmp_path / "1.parquet") as file:
        assert rows_at_once(file, [0], ["text.en"], 64, 64) == 16, "a column whose name has a dot"


@pytest.mark.parametrize(
    ("dtype", "bytes_"),
    [
        (pa.bool_(), 1),
        (pa.float16(), 2),
        (pa.list_(pa.float32(), 256), 1024),
        (pa.list_(pa.list_(pa.int8(), 3), 5), 15),
        (pa.binary(16), 16),
        (pa.timestamp("us"), 8),
        (pa.string(), None),
        (pa.list_(pa.float32()), None),
        (pa.list_(pa.string(), 2), None),
        (pa.struct({"a": pa.int64()}), None),
        (pa.dictionary(pa.int32(), pa.string()), None),
        (pa.null(), None),
    ],
)
def test_the_width_of_a_value(dtype, bytes_):
    assert width(dtype) == bytes_


@pytest.mark.parametrize("is_dictionary", [False, True])
def test_a_file_whose_rows_take_a_thousand_times_its_bytes_is_refused(
    tmp_path, monkeypatch, is_dictionary
):
    storage = bomb(tmp_path, 200, is_dictionary)
    monkeypatch.setenv("CLIPMILL_MAX_BATCH_BYTES", "2000000")
    monkeypatch.setenv("CLIPMILL_MAX_PARQUET_RATIO", "300")
    size = (tmp_path / "0.parquet").stat().st_size
    assert 300 * size < 200 * 100_000
    with pytest.raises(pa.ArrowInvalid, match=r"300 times its .* CLIPMILL_MAX_PARQUET_RATIO"):
        read(storage, 200)


@pytest.mark.parametrize(
    ("groups", "shards", "most"), [(63, 1, 1), (128, 1, 2), (640, 1, 8), (640, 3, 6)]
)
def test_small_groups_of_a_file_are_one_unit_where_there_are_many(groups, shards, most):
    """Of two files, and a file of its own whose only group is larger than a unit."""
    given = [
        [{"path": str(group * 2 // groups), "start": number} for number in range(shards)]
        for group in range(groups)
    ]
    given.append([{"path": "2", "start": number} for number in range(20)])
    units = joined(given)
    assert list(chain(*units)) == list(chain(*given))
    assert all(len({source["path"] for source in unit}) == 1 for unit in units)
    assert max(map(len, units[:-1])) == most
    assert len(units[-1]) == 20
    assert len(units) >= 64


@pytest.mark.parametrize("row_group_rows", [1 << 20, 6000, 1500, 100])
def test_a_row_group_is_decoded_once_and_its_beginning_once_more_at_most(
    tmp_path, monkeypatch, row_group_rows
):
    """Before, a group of 10,000 rows was decoded 5.5 times for shards of 1,000."""
    rows, shard_rows = 10_000, 1000
    pq.write_table(
        pa.table({"n": range(rows)}), tmp_path / "0.parquet", row_group_size=row_group_rows
    )
    decoded = []
    batches_of = pq.ParquetFile.iter_batches

    def counted(self, *args, **kwargs):
        for batch in batches_of(self, *args, **kwargs):
            decoded.append(len(batch))
            yield batch

    monkeypatch.setattr(module.pq.ParquetFile, "iter_batches", counted)
    storage = Storage(str(tmp_path))
    (file,) = list_files(str(tmp_path), (".parquet",), "p")
    groups, _ = scan_parquet(storage, file, shard_rows)
    for group in groups:
        shards_of(storage, group)
    crossings = len(groups) * shard_rows if row_group_rows > shard_rows else 0
    assert rows <= sum(decoded) <= rows + crossings
    if row_group_rows >= rows:
        assert sum(decoded) == rows


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
    assert shards_of(Storage(str(tmp_path)), [source]) == [[list(range(12, 18))]]


def test_a_column_of_many_pages_is_read_in_bounded_memory(tmp_path):
    """One row group with all images of a file, as pandas writes it; a page is what must fit."""
    images = [bytes([i % 251]) * (1 << 20) for i in range(64)]
    pq.write_table(pa.table({"n": images}), tmp_path / "0.parquet", write_batch_size=4)
    source = {"path": "0.parquet", "start": 0, "stop": 64}
    before = pa.total_allocated_bytes()
    most = 0
    for tables in parquet_rows(Storage(str(tmp_path)), [source], ["n"], batch_rows=4):
        for _ in tables:
            most = max(most, pa.total_allocated_bytes() - before)
    assert most < 40 << 20
