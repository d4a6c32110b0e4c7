"""A stored Parquet file, read by batches or at positions; one whose bytes have changed is refused.

Pages carry checksums, and a file's name its digest: a reader that meets a changed byte says which
file is damaged, and gives no value.
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
FAR_BYTES = 2 << 20  # of an object store: two requests take as long as these bytes
UNREADABLE = (OSError, ValueError, KeyError, pa.ArrowException)  # what a changed file can raise

Types = Mapping[str, pa.DataType]  # of columns, as their stage declares them


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
    """The file, or its bytes; pa.ArrowInvalid where a small one has another digest."""
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
    """The rows in tables of exactly `rows`, the last one shorter; no rows are one empty table."""
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
