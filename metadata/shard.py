"""One shard's Parquet file: written in a stream to the same bytes every time, read by batches.

Row groups are cut at 4,096 rows or 16 MB, whichever comes first at the end of a batch, so that a
reader of images holds little.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from metadata.record import Record, ShardState, data_name
from metadata.schema import IMAGE, KEEP, POSITION, REASON, UID
from metadata.storage import Storage

GROUP_ROWS = 4096
GROUP_BYTES = 16 << 20
NOT_SELECTED = "not_selected"


class ShardWriter:
    """Writes batches to a scratch file, hashing and counting as they pass."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.schema = schema
        self.rows = 0
        self.counts: dict[str, int] = {}
        self._sink = _HashingFile(path)
        self._uids = hashlib.sha256()
        self._pending: list[pa.Table] = []
        self._pending_rows = self._pending_bytes = 0
        self._writer = pq.ParquetWriter(
            pa.PythonFile(self._sink, mode="w"),
            schema,
            compression={
                name: "NONE" if name == IMAGE.name else "ZSTD" for name in _leaves(schema)
            },
            use_dictionary=[
                field.name
                for field in schema
                if pa.types.is_string(field.type) or pa.types.is_dictionary(field.type)
            ],
            write_statistics=False,  # readers here scan; uids are random
        )

    def add(self, batch: pa.Table) -> None:
        """Adds rows in the writer's schema."""
        self.rows += len(batch)
        self._pending.append(batch)
        self._pending_rows += len(batch)
        self._pending_bytes += batch.nbytes
        if self._pending_rows >= GROUP_ROWS or self._pending_bytes >= GROUP_BYTES:
            self._flush()

    def close(self) -> tuple[str, int]:
        """Ends the file; returns the SHA-256 of its bytes and their number."""
        if self._pending:
            self._flush()
        self._writer.close()
        self._sink.close()
        return self._sink.sha256.hexdigest(), self._sink.size

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        """Lets go of the scratch file where it was not closed."""
        with contextlib.suppress(OSError):  # a full disk takes no footer either
            self._writer.close()
        with contextlib.suppress(OSError):
            self._sink.close()

    @property
    def uid_sha256(self) -> str:
        return self._uids.hexdigest()[:32]

    def _flush(self) -> None:
        group = pa.concat_tables(self._pending).unify_dictionaries().combine_chunks()
        for chunk in group[UID.name].chunks:
            self._uids.update(
                memoryview(chunk.buffers()[1])[chunk.offset * 16 : (chunk.offset + len(chunk)) * 16]
            )
        if REASON.name in group.column_names:
            _count(group[REASON.name], self.counts)
        self._writer.write_table(group, row_group_size=max(1, len(group)))
        self._pending = []
        self._pending_rows = self._pending_bytes = 0


def store(folder: Storage, writer: ShardWriter, scratch: Path, record: dict[str, Any]) -> Record:
    """Puts a closed shard: data first, its record last. The rest of the record is given."""
    sha256, size = writer.close()
    data = data_name(record["shard"], record.get("number", 0), sha256)
    made = Record(
        data=data,
        size_bytes=size,
        sha256=sha256[:32],
        uid_sha256=writer.uid_sha256,
        counts=dict(sorted(writer.counts.items())),
        computed=writer.rows,
        **record,
    )
    folder.commit(scratch, data)
    folder.put(made.name, made.to_json().encode(), point="record")
    return made


def read_stage(
    folder: Storage,
    state: ShardState,
    columns: Sequence[str],
    batch_rows: int,
    mask_folder: Storage | None = None,
) -> Iterator[pa.Table]:
    """Columns of one stage's shard, `batch_rows` at a time; passes coalesced, the mask applied."""
    base = read_file(folder, state.files[0], columns, batch_rows)
    if len(state.files) == 1 and state.mask is None:
        yield from base
        return
    later = [_Sparse(folder, name, columns) for name in state.files[1:]]
    mask = (
        read_stage(mask_folder, state.mask, [KEEP.name], batch_rows)
        if state.mask is not None and mask_folder is not None
        else None
    )
    start = 0
    for batch in base:
        index = np.arange(len(batch))
        parts = [batch]
        offset = len(batch)
        for sparse in later:
            rows = sparse.take(start, start + len(batch))
            if len(rows):
                position = rows[POSITION.name].to_numpy() - start
                index[position] = offset + np.arange(len(rows))
                parts.append(rows.drop_columns([POSITION.name]).select(batch.column_names))
                offset += len(rows)
        whole = pa.concat_tables(parts).unify_dictionaries()
        outside = None
        if mask is not None:
            keep = pc.fill_null(next(mask)[KEEP.name], False)
            outside = ~keep.to_numpy(zero_copy_only=False)
        yield _taken(whole, index, outside)
        start += len(batch)


def read_file(
    folder: Storage, name: str, columns: Sequence[str], batch_rows: int
) -> Iterator[pa.Table]:
    """Columns of one Parquet file in batches of exactly `batch_rows`, the last one shorter."""
    with folder.open(name) as source, pq.ParquetFile(source, pre_buffer=False) as file:
        batches = (
            pa.Table.from_batches([batch])
            for batch in file.iter_batches(batch_rows, columns=list(columns), use_threads=False)
        )
        empty = file.schema_arrow.empty_table().select(list(columns))
        yield from recut(batches, batch_rows, empty)


def recut(batches: Iterator[pa.Table], rows: int, empty: pa.Table) -> Iterator[pa.Table]:
    """The same rows in tables of exactly `rows`, the last one shorter; one empty table of none."""
    held: list[pa.Table] = []
    count = 0
    seen = False
    for batch in batches:
        if len(batch) == rows and not held:  # how a whole row group is cut: nothing to do
            seen = True
            yield batch
            continue
        while len(batch):
            part = batch.slice(0, rows - count)
            batch = batch.slice(len(part))
            held.append(part)
            count += len(part)
            if count == rows:
                seen = True
                yield pa.concat_tables(held)
                held, count = [], 0
    if held:
        yield pa.concat_tables(held)
    elif not seen:
        yield empty


class _Sparse:
    """A later pass: rows with their positions, read once from front to back."""

    def __init__(self, folder: Storage, name: str, columns: Sequence[str]) -> None:
        self._batches = read_file(folder, name, [POSITION.name, *columns], 1024)
        self._held: pa.Table | None = next(self._batches, None)

    def take(self, start: int, stop: int) -> pa.Table:
        """The rows at positions in [start, stop); positions rise."""
        parts = []
        while self._held is not None:
            position = self._held[POSITION.name].to_numpy()
            upto = int(np.searchsorted(position, stop))
            parts.append(self._held.slice(0, upto))
            if upto < len(position):
                self._held = self._held.slice(upto)
                break
            self._held = next(self._batches, None)
        return (
            pa.concat_tables(parts)
            if parts
            else pa.table({POSITION.name: pa.array([], pa.int32())})
        )


def _taken(table: pa.Table, index: Any, outside: Any) -> pa.Table:
    """Rows of the table by index; null, and `not_selected`, where outside the mask."""
    taken = table.take(pa.array(index, mask=outside))
    if outside is None or not outside.any():
        return taken
    columns = {}
    for name in taken.column_names:
        column = taken[name]
        if name == UID.name:
            column = table[name].take(pa.array(index))
        elif name == REASON.name:
            column = reason_where(outside, NOT_SELECTED, column)
        columns[name] = column
    return pa.table(columns)


def reason_where(where: Any, code: str, otherwise: pa.ChunkedArray) -> pa.Array:
    """A reason column: the code where true, else what it was."""
    plain = otherwise.cast(pa.string())
    chosen = pc.if_else(pa.array(where), code, plain)
    if isinstance(chosen, pa.ChunkedArray):
        chosen = chosen.combine_chunks()
    return chosen.dictionary_encode()


def _count(reason: pa.ChunkedArray, counts: dict[str, int]) -> None:
    for chunk in reason.chunks:
        if chunk.null_count:
            counts[""] = counts.get("", 0) + chunk.null_count
        if chunk.null_count < len(chunk):
            codes = chunk.dictionary.to_pylist()
            rows = np.bincount(chunk.indices.drop_null().to_numpy(), minlength=len(codes))
            for code, number in zip(codes, rows.tolist(), strict=True):
                if number:
                    counts[code] = counts.get(code, 0) + number


def _leaves(schema: pa.Schema) -> list[str]:
    """Paths of the Parquet leaf columns: what per-column compression is keyed by."""
    return [leaf for field in schema for leaf in _leaf_paths(field.name, field.type)]


def _leaf_paths(path: str, dtype: pa.DataType) -> list[str]:
    if pa.types.is_fixed_size_list(dtype) or pa.types.is_list(dtype):
        return _leaf_paths(f"{path}.list.element", dtype.value_type)
    if pa.types.is_struct(dtype):
        return [
            leaf
            for index in range(dtype.num_fields)
            for leaf in _leaf_paths(f"{path}.{dtype.field(index).name}", dtype.field(index).type)
        ]
    return [path]


class _HashingFile:
    """A file that hashes what is written to it. Parquet is written front to back."""

    def __init__(self, path: Path) -> None:
        # Parquet writes headers of 20 bytes between its pages: joined, a sixth less time.
        self._file: IO[bytes] = path.open("wb", buffering=1 << 20)
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self.size += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    @property
    def closed(self) -> bool:
        return self._file.closed
