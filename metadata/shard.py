"""One shard's Parquet file: written in a stream to the same bytes every time, read by batches.

Row groups are cut at 4,096 rows or 16 MB, whichever comes first at the end of a batch, so that a
reader of images holds little. Pages carry checksums, and a file's name its digest: a reader that
meets a changed byte says which file is damaged, and gives no value.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from metadata.damage import DamagedError
from metadata.record import Record, ShardState, data_name, digest_in
from metadata.schema import IMAGE, KEEP, POSITION, REASON, UID
from metadata.storage import Storage

GROUP_ROWS = 4096
GROUP_BYTES = 16 << 20
SMALL_BYTES = 256 << 10
NOT_SELECTED = "not_selected"
UNREADABLE = (OSError, ValueError, KeyError, pa.ArrowException)  # what a changed file can raise

Types = Mapping[str, pa.DataType]  # of columns, as their stage declares them


class ShardWriter:
    """Writes batches to a scratch file, hashing and counting as they pass.

    Without page checksums it writes the bytes that versions before them wrote.
    """

    def __init__(self, path: Path, schema: pa.Schema, page_checksums: bool = True) -> None:
        self.schema = schema
        self.page_checksums = page_checksums
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
            write_page_checksum=page_checksums,
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
        page_checksums=writer.page_checksums,
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
    types: Types = MappingProxyType({}),
) -> Iterator[pa.Table]:
    """Columns of one stage's shard, `batch_rows` at a time; passes coalesced, the mask applied.

    DamagedError where a file is gone, has changed, or is not of these types and the record's rows.
    """
    base = read_file(folder, state.files[0], columns, batch_rows, types, state.rows)
    if len(state.files) == 1 and state.mask is None:
        yield from base
        return
    later = [_Sparse(folder, name, columns, types) for name in state.files[1:]]
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
    folder: Storage,
    name: str,
    columns: Sequence[str],
    batch_rows: int,
    types: Types = MappingProxyType({}),
    rows: int | None = None,
) -> Iterator[pa.Table]:
    """Columns of one Parquet file in batches of exactly `batch_rows`, the last one shorter."""
    with opened(folder, name, digest_in(name), types, rows) as file:
        empty = file.schema_arrow.empty_table().select(list(columns))
        yield from recut(_whole(file, batch_rows, columns), batch_rows, empty)


def _whole(file: pq.ParquetFile, batch_rows: int, columns: Sequence[str]) -> Iterator[pa.Table]:
    """All rows of a file; pa.ArrowInvalid at the end where a page was passed over."""
    rows = 0
    for batch in file.iter_batches(batch_rows, columns=list(columns), use_threads=False):
        rows += len(batch)
        yield pa.Table.from_batches([batch])
    if rows != file.metadata.num_rows:
        raise pa.ArrowInvalid(f"{rows} of {file.metadata.num_rows} rows")


def read_at(
    folder: Storage, name: str, columns: Sequence[str], positions: NDArray[np.int64]
) -> pa.Table:
    """Columns of one Parquet file at rising positions: only their row groups are read."""
    with opened(folder, name, digest_in(name)) as file:
        tables = [file.schema_arrow.empty_table().select(list(columns))]
        start = 0
        for group in range(file.num_row_groups):
            stop = start + file.metadata.row_group(group).num_rows
            here = positions[(positions >= start) & (positions < stop)] - start
            if len(here):
                table = file.read_row_group(group, columns=list(columns), use_threads=False)
                tables.append(table.take(pa.array(here)))
            start = stop
    return pa.concat_tables(tables)


def sound_groups(folder: Storage, name: str, schema: pa.Schema) -> list[tuple[int, bool]]:
    """Rows of each row group, and whether it can be read; nothing of an unreadable file."""
    groups: list[tuple[int, bool]] = []
    try:
        with opened(folder, name, "", dict(zip(schema.names, schema.types, strict=True))) as file:
            for group in range(file.num_row_groups):
                is_sound = False
                with contextlib.suppress(*UNREADABLE):
                    file.read_row_group(group, columns=schema.names, use_threads=False)
                    is_sound = True
                groups.append((file.metadata.row_group(group).num_rows, is_sound))
    except (DamagedError, *UNREADABLE):
        return []
    return groups


@contextlib.contextmanager
def opened(
    folder: Storage,
    name: str,
    sha256: str,
    types: Types = MappingProxyType({}),
    rows: int | None = None,
) -> Iterator[pq.ParquetFile]:
    """A Parquet file, to be read inside; DamagedError where that fails as its bytes have changed.

    `sha256` is what its digest begins with: it tells damage from a disk that fails for a moment.
    A small file is read as a whole and held to it, as headers, which have no checksum, are much
    of it: of a million changed bytes in one of 4 kB, 44 were not met without (docs/reliability.md).
    """
    try:
        with (
            _whole_if_small(folder.open(name), sha256) as source,
            pq.ParquetFile(source, pre_buffer=False, page_checksum_verification=True) as file,
        ):
            if rows is not None and file.metadata.num_rows != rows:
                found = f"{file.metadata.num_rows} rows, and its record says {rows}"
                raise DamagedError(folder.uri, name, found)
            for field in file.schema_arrow:
                if field.type != types.get(field.name, field.type):
                    found = f"'{field.name}' is {field.type}, and declared {types[field.name]}"
                    raise DamagedError(folder.uri, name, found)
            yield file
    except UNREADABLE as error:
        if not _has_digest(folder, name, sha256):
            raise DamagedError(folder.uri, name, f"it cannot be read: {error}") from error
        raise


def _whole_if_small(source: pa.NativeFile, sha256: str) -> pa.NativeFile:
    """The file, or its bytes; pa.ArrowInvalid where a small one has another digest."""
    if source.size() > SMALL_BYTES:
        return source
    with source:
        data = source.read_buffer()
    if not hashlib.sha256(data).hexdigest().startswith(sha256):
        raise pa.ArrowInvalid("its bytes have changed")
    return pa.BufferReader(data)


def _has_digest(folder: Storage, name: str, sha256: str) -> bool:
    try:
        return folder.sha256(name).startswith(sha256)
    except FileNotFoundError:
        return False


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

    def __init__(self, folder: Storage, name: str, columns: Sequence[str], types: Types) -> None:
        self._batches = read_file(folder, name, [POSITION.name, *columns], 1024, types)
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
