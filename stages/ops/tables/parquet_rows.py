"""Reads rows of Parquet files that others wrote: cut into shards, each row group read once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipmill.metadata.globs import open_pool
from clipmill.metadata.limits import limit
from clipmill.metadata.storage import Storage
from clipmill.stages.ops.tables.pools import BATCH_ROWS, list_files

READ_BYTES = 8 << 20  # of a column at a time: one row group may hold all images of a file
TOGETHER = 8  # shards of small row groups that are read as one
FEW_ROWS = 16  # read at once of columns whose values may be as large as their chunk
WITH_LENGTH = pa.string(), pa.large_string(), pa.binary()
LEAST = 64  # units of work to leave, for many workers, when groups are joined

Source = dict[str, Any]


def scan_parquet(
    storage: Storage, file: Mapping[str, Any], shard_rows: int
) -> tuple[list[list[Source]], pa.Schema | None]:
    """Returns sources of `shard_rows` rows by the row group in which they start, and the schema.

    A file that cannot be opened is a source without an end; one without rows, a shard without rows.
    """
    source = {"path": file["path"], "digest": file["digest"]}
    try:
        with storage.open(file["path"]) as opened, pq.ParquetFile(opened) as parquet:
            sizes, schema = sizes_of_groups(parquet), parquet.schema_arrow
    except (pa.ArrowException, OSError):
        return [[{**source, "start": 0, "stop": None}]], None  # reading fails its shard alone
    rows = sum(sizes)
    start_S = np.arange(0, max(rows, 1), shard_rows)
    stop_S = np.minimum(start_S + shard_rows, rows)
    group_S = np.searchsorted(np.cumsum(sizes, dtype=np.int64), start_S, "right")
    groups: dict[int, list[Source]] = {}
    for group, start, stop in zip(*(a.tolist() for a in (group_S, start_S, stop_S)), strict=True):
        bounds = {"start": start, "stop": stop, "rows": rows}
        groups.setdefault(group, []).append(source | bounds)
    return list(groups.values()), schema


def parquet_counts(
    path: str, suffixes: Sequence[str], shard_rows: int
) -> Iterator[tuple[int, int]]:
    """Yields rows and shards of each Parquet file, from its footer; one shard if unreadable."""
    storage, _ = open_pool(path)
    for file in list_files(path, suffixes, "pool"):
        yield counted(storage, file, shard_rows)


def counted(storage: Storage, file: Mapping[str, Any], shard_rows: int) -> tuple[int, int]:
    """Returns rows and shards of a Parquet file."""
    groups, _ = scan_parquet(storage, file, shard_rows)
    return groups[0][0].get("rows", 0), sum(map(len, groups))


def groups_in(scanned: Sequence[Mapping[str, Any]]) -> list[list[Source]]:
    """Returns the groups of sources in the results of scans.

    A run folder may keep results from before there were groups: each source is alone there.
    """
    return [
        group
        for file in scanned
        for group in file.get("groups") or [[source] for source in file["sources"]]
    ]


def joined(groups: Sequence[list[Source]]) -> list[list[Source]]:
    """Returns the groups, small neighbours in a file joined: they share the cost of a unit."""
    most = min(TOGETHER, len(groups) // LEAST)
    units: list[list[Source]] = []
    for group in groups:
        last = units[-1] if units else []
        if last and last[0]["path"] == group[0]["path"] and len(last) + len(group) <= most:
            units[-1] = last + group
        else:
            units.append(group)
    return units


def parquet_rows(
    storage: Storage,
    sources: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    batch_rows: int = BATCH_ROWS,
    at_once: int = 1,
    convert: Callable[[pa.Table], pa.Table] = lambda rows: rows,
) -> Iterator[Iterator[pa.Table]]:
    """Yields the rows of each source in turn, of the columns that the file has, streamed.

    Of a dotted path into a struct, `caption.en`, the struct has that part alone. The sources are of
    one file, in its order. Those that start in one row group read it once, from its first row, for
    there is no other way in; the last may reach into the next group, and reads its own rows there.
    Batches are cut from the group's start, the same ones for a source alone or with others. Of
    them, `at_once` are read and converted by `convert` together: they share the cost of a call.
    """
    path = sources[0]["path"]
    with storage.open(path) as opened, pq.ParquetFile(opened, buffer_size=READ_BYTES) as parquet:
        sizes = sizes_of_groups(parquet)
        end_G = np.cumsum(sizes, dtype=np.int64)
        names = parquet.schema_arrow.names
        present = [path for path in columns if {path, path.partition(".")[0]} & {*names}]

        def begins_in(source: Mapping[str, Any]) -> int:
            return int(np.searchsorted(end_G, source["start"], "right"))

        for first, beginning in groupby(sources, begins_in):
            own = [(s["start"], sum(sizes) if s["stop"] is None else s["stop"]) for s in beginning]
            (start, _), (_, stop) = own[0], own[-1]
            groups = np.flatnonzero((end_G > start) & (end_G - sizes < stop)).tolist()
            read = bounded(parquet, groups, present, batch_rows * at_once, opened.size())
            batches = Positioned(map(convert, read), sum(sizes[:first]), batch_rows)
            for bounds in own:
                yield batches.between(*bounds)


def bounded(
    parquet: pq.ParquetFile, groups: Sequence[int], columns: Sequence[str], rows: int, size: int
) -> Iterator[pa.Table]:
    """Yields tables of `rows` rows, of fewer if they would take more than MAX_BATCH_BYTES.

    pa.ArrowInvalid for a bomb: above MAX_BATCH_BYTES, all is MAX_PARQUET_RATIO times the `size`.
    """
    most = limit("MAX_BATCH_BYTES")
    ratio = limit("MAX_PARQUET_RATIO")
    at_once, total = rows_at_once(parquet, groups, columns, rows, most), 0
    has_dictionary = any(map(pa.types.is_dictionary, parquet.schema_arrow.types))
    # Of a batch `nbytes` takes 200 times as long; its buffers take no less.
    at_most = _bytes_of_all if has_dictionary else pa.RecordBatch.get_total_buffer_size
    read = parquet.iter_batches(at_once, row_groups=groups, columns=columns, use_threads=False)
    for batches in _grouped(read, rows, most, at_most):
        table = pa.Table.from_batches(batches)
        table = table if len(batches) == 1 else table.combine_chunks()
        total += _bytes_of_all(table)
        if total > max(most, ratio * size):
            found = f"its rows take {ratio:,} times its {size:,} bytes, and {most:,} bytes"
            raise pa.ArrowInvalid(f"{found}: a bomb, or raise CLIPMILL_MAX_PARQUET_RATIO")
        yield table


def _grouped(
    read: Iterator[pa.RecordBatch],
    rows: int,
    most: int,
    at_most: Callable[[pa.RecordBatch], int],
) -> Iterator[list[pa.RecordBatch]]:
    """Yields batches that together have `rows` rows, or fewer of `most` bytes."""
    group: list[pa.RecordBatch] = []
    count = size = 0
    for batch in read:
        group.append(batch)
        count, size = count + len(batch), size + at_most(batch)
        if count == rows or (size >= most and sum(map(_bytes_of_all, group)) >= most):
            yield group
            group, count, size = [], 0, 0
    if group:
        yield group


def rows_at_once(
    parquet: pq.ParquetFile, groups: Sequence[int], columns: Sequence[str], rows: int, most: int
) -> int:
    """Returns `rows`, or a part of that if these may take more than `most` bytes.

    No value of any width is larger than its column's chunk; one of a dictionary may stand in all.
    """
    tops = {*columns, *(path.partition(".")[0] for path in columns)}
    width_of = {f.name: width(f.type) for f in parquet.schema_arrow if f.name in tops}
    chunks = (
        parquet.metadata.row_group(group).column(column)
        for group in groups
        for column in range(parquet.metadata.num_columns)
    )
    unbounded = tuple(f"{name}." for name, bytes_ in width_of.items() if bytes_ is None)
    each = [
        chunk.total_uncompressed_size
        for chunk in chunks
        if f"{chunk.path_in_schema}.".startswith(unbounded)
    ]
    fixed = sum(bytes_ for bytes_ in width_of.values() if bytes_ is not None)
    worst = max([*each, fixed], default=0)
    if worst * rows <= most:
        return rows
    fewest = min(rows, max(FEW_ROWS, most // worst))
    return next(part for part in range(fewest, 0, -1) if rows % part == 0)  # cuts stay the same


def width(dtype: pa.DataType) -> int | None:
    """Returns the bytes of a value; None of a type whose values differ."""
    if pa.types.is_fixed_size_list(dtype):
        item = width(dtype.value_type)
        return None if item is None else item * dtype.list_size
    if pa.types.is_primitive(dtype) or pa.types.is_fixed_size_binary(dtype):
        return -(-dtype.bit_width // 8)
    return None


def _bytes_of_all(rows: pa.Table | pa.RecordBatch) -> int:
    return sum(map(bytes_of, rows.columns))


def bytes_of(column: pa.Array | pa.ChunkedArray) -> int:
    """Returns the bytes of a column's values; a dictionary's values count in each row."""
    if isinstance(column, pa.ChunkedArray):
        return sum(map(bytes_of, column.chunks))
    if not pa.types.is_dictionary(column.type) or column.type.value_type not in WITH_LENGTH:
        return int(column.nbytes)
    lengths = pc.binary_length(column.dictionary).cast(pa.int64()).take(column.indices)
    return pc.sum(lengths).as_py() or 0


class Positioned:
    """Batches of a file, given out by rising ranges of rows and cut after every `rows` rows."""

    def __init__(self, batches: Iterator[pa.Table], row: int, rows: int) -> None:
        self.batches, self.rows = batches, rows
        self.row = row  # of the file: the first of `batch`
        self.batch: pa.Table | None = None

    def between(self, start: int, stop: int) -> Iterator[pa.Table]:
        """Yields the rows start to stop; those before are skipped."""
        while self.row < stop:
            if self.batch is None and (batch := next(self.batches, None)) is not None:
                self.batch = batch
            if self.batch is None:
                return
            end = self.row + len(self.batch)
            first, last = (min(max(row, self.row), end) - self.row for row in (start, stop))
            while first < last:
                after = min(last, first + self.rows - first % self.rows)
                yield self.batch.slice(first, after - first)
                first = after
            if end > stop:
                return  # the next range begins in this batch
            self.row, self.batch = end, None


def sizes_of_groups(parquet: pq.ParquetFile) -> list[int]:
    """Returns the rows of each row group."""
    return [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
