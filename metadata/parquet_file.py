"""Reads stored Parquet files by batches or at positions, and refuses changed bytes.

Pages carry checksums, and a file's name its digest: a reader that meets a changed byte names the
damaged file and returns no value.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.record import digest_in
from clipmill.metadata.storage import Storage

SMALL_BYTES = 256 << 10
FAR_BYTES = 2 << 20  # on an object store, where two requests take as long as reading this
UNREADABLE = (OSError, ValueError, KeyError, pa.ArrowException)  # raised by changed files

Types = Mapping[str, pa.DataType]  # of columns, as their stage declares them


def read_file(
    folder: Storage,
    name: str,
    columns: Sequence[str],
    batch_rows: int,
    types: Types = MappingProxyType({}),
    rows: int | None = None,
) -> Iterator[pa.Table]:
    """Yields columns of a Parquet file in batches of exactly `batch_rows`, the last one shorter."""
    with opened(folder, name, digest_in(name), types, rows) as file:
        empty = file.schema_arrow.empty_table().select(list(columns))
        yield from recut(_whole(file, batch_rows, columns), batch_rows, empty)


def _whole(file: pq.ParquetFile, batch_rows: int, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yields all rows of a file; pa.ArrowInvalid at the end if rows are missing."""
    rows = 0
    for batch in file.iter_batches(batch_rows, columns=list(columns), use_threads=False):
        rows += len(batch)
        yield pa.Table.from_batches([batch])
    if rows != file.metadata.num_rows:
        raise pa.ArrowInvalid(f"{rows} of {file.metadata.num_rows} rows")


def read_at(
    folder: Storage, name: str, columns: Sequence[str], positions: NDArray[np.int64]
) -> pa.Table:
    """Returns columns at rising positions of a Parquet file, reading only their row groups."""
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
    """Returns each row group's rows and whether it can be read; empty for an unreadable file."""
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
    """Opens a Parquet file; raises DamagedError if reading inside fails since its bytes changed.

    `sha256`, the start of its digest, tells damage from a disk that fails for a moment. Small files
    are read whole and checked against it, as their headers have no checksum: without this, 44 of a
    million changed bytes in a file of 4 kB went unnoticed (docs/reliability.md).
    """
    try:
        with (
            _whole_if_small(folder, name, sha256) as source,
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


def _whole_if_small(folder: Storage, name: str, sha256: str) -> pa.NativeFile:
    """Opens a file, a small one in memory; pa.ArrowInvalid if the small one's digest differs."""
    source = folder.open(name)
    if source.size() > (SMALL_BYTES if folder.is_local else FAR_BYTES):
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
    """Recuts batches into tables of `rows` rows, the last one shorter; yields `empty` if none."""
    pending: list[pa.Table] = []
    count = 0
    has_yielded = False
    for batch in batches:
        if len(batch) == rows and not pending:  # already of that size, as in a whole row group
            has_yielded = True
            yield batch
            continue
        while len(batch):
            part = batch.slice(0, rows - count)
            batch = batch.slice(len(part))
            pending.append(part)
            count += len(part)
            if count == rows:
                has_yielded = True
                yield pa.concat_tables(pending)
                pending, count = [], 0
    if pending:
        yield pa.concat_tables(pending)
    elif not has_yielded:
        yield empty
