"""Compaction: copies a stage's records into few objects, so that a resume reads few.

While a stage runs, new records go into parts, such as `records-0007.parquet`. Each part is written
once, so the cost is linear in shards. When the stage ends, or some of its records are to be made
again, one `records.parquet` replaces the parts. If a copy is torn or older than a record, the
record itself is read.
"""

import io
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipmill.metadata.limits import PARSE_ERRORS
from clipmill.metadata.record import Record, parsed, record_name
from clipmill.metadata.records import RECORD, table_of
from clipmill.metadata.storage import Storage

BATCH = 4096
GROUP = 8192  # records in a row group: what a look at one shard reads
COMPACTED = "records.parquet"
PART = re.compile(r"records-(\d{4,})\.parquet")
LISTED = pa.schema([("name", pa.string()), ("size", pa.int64()), ("mtime_ns", pa.int64())])
FOLD = pa.schema([*LISTED, *RECORD])
OLDER = pa.schema([*LISTED, ("json", pa.string())])  # until November 2026: read, not written


@dataclass
class Compacted:
    """The records in a folder's compactions, and which of them are still valid."""

    records: pa.Table  # listed name, size, time, then a record's columns: still as listed
    changed: pa.Table  # the same columns, of records whose object has changed since
    parts: int  # number of the next part
    is_single: bool  # only `records.parquet` is there, and all it holds is valid


def compact(folder: Storage, records: pa.Table) -> None:
    """Writes `records.parquet`: the records with their objects' listed size and time.

    Deletes the parts afterwards.
    """
    listing = folder.listing()
    name = _names(records)
    row = pc.index_in(name, value_set=listing["name"])
    listed = [name, listing["size"].take(row), listing["mtime_ns"].take(row)]
    table = pa.table([*listed, *records.itercolumns()], schema=FOLD)
    _put(folder, COMPACTED, table.filter(row.is_valid()))
    for other in listing["name"].to_pylist():
        if PART.fullmatch(other):
            folder.delete(other)


def append(folder: Storage, number: int, records: Iterable[Record]) -> None:
    """Writes a part of records that were just stored, without listing the folder."""
    sizes = [len(record.to_json().encode()) for record in records]
    columns = table_of(records)
    listed = [_names(columns), pa.array(sizes, pa.int64()), pa.nulls(len(columns), pa.int64())]
    table = pa.table([*listed, *columns.itercolumns()], schema=FOLD)
    _put(folder, f"records-{number:04d}.parquet", table)


def read_compacted(folder: Storage, listing: pa.RecordBatch) -> Compacted:
    """Reads the compactions in a folder's listing, and splits their records by validity.

    A record is valid if its object has the copied size and time. Parts hold no times: there, the
    object must be older than the part.
    """
    there = listing["name"].filter(pc.starts_with(listing["name"], "records")).to_pylist()
    parts = sorted((int(match[1]), match[0]) for match in map(PART.fullmatch, there) if match)
    names = [*(name for name in there if name == COMPACTED), *(name for _, name in parts)]

    def read(name: str) -> bytes:
        try:
            return folder.read(name)
        except OSError:  # as if torn: its records are read one by one
            return b""

    is_single, valid, changed_parts = names == [COMPACTED], [], [FOLD.empty_table()]
    with ThreadPoolExecutor(8) as pool:
        # A single one is read here: a thread costs more than the rest of a small scan.
        texts = pool.map(read, names) if len(names) > 1 else map(read, names)
        for name, data in zip(names, texts, strict=True):
            copied, is_whole = _read(data)
            is_valid = _are_as_listed(copied, listing, name)
            if pc.all(is_valid, min_count=0).as_py():
                valid.append(copied)
            else:
                valid.append(copied.filter(is_valid))
                changed_parts.append(copied.filter(pc.invert(is_valid)))
            is_single = is_single and is_whole and len(valid[-1]) == len(copied)
    records = valid[0] if len(valid) == 1 else _last(pa.concat_tables([FOLD.empty_table(), *valid]))
    changed = _last(pa.concat_tables(changed_parts))
    return Compacted(records, changed, parts[-1][0] + 1 if parts else 0, is_single)


def _are_as_listed(records: pa.Table, listing: pa.RecordBatch, compaction: str) -> pa.BooleanArray:
    """Returns (R,) whether each row's object still has the size and time it was copied with."""
    row = pc.index_in(records["name"].combine_chunks(), value_set=listing["name"])
    row_R = row.fill_null(0).to_numpy()
    mtime_R, size_R = (listing[name].to_numpy()[row_R] for name in ("mtime_ns", "size"))
    put_ns = listing["mtime_ns"][listing["name"].index(compaction).as_py()].as_py()
    folded_R = records["mtime_ns"].fill_null(0).to_numpy()
    is_time_R = np.where(records["mtime_ns"].is_null(), mtime_R < put_ns, mtime_R == folded_R)
    is_so_R = is_time_R & (size_R == records["size"].to_numpy()) & np.asarray(row.is_valid())
    return pa.array(is_so_R)


def _last(records: pa.Table) -> pa.Table:
    """Returns the last row of each name."""
    code_R = records["name"].combine_chunks().dictionary_encode().indices.to_numpy()
    _, from_end = np.unique(code_R[::-1], return_index=True)
    if len(from_end) == len(code_R):
        return records
    return records.take(np.sort(len(code_R) - 1 - from_end))


def _names(records: pa.Table) -> pa.Array:
    numbers = zip(records["shard"].to_pylist(), records["number"].to_pylist(), strict=True)
    return pa.array((record_name(*number) for number in numbers), pa.string())


def _put(folder: Storage, name: str, records: pa.Table) -> None:
    sink = io.BytesIO()
    # Most are small: zstd and dictionaries would take three times as long to read.
    pq.write_table(
        records, sink, row_group_size=GROUP, use_dictionary=False, write_page_checksum=True
    )
    folder.put(name, sink.getvalue(), point="compaction")


def _read(data: bytes) -> tuple[pa.Table, bool]:
    """Reads a compaction: its records in today's columns, and whether it is whole and current."""
    try:
        # Not read_table: it imports datasets and starts threads, for one small file.
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        if "json" in file.schema_arrow.names:
            return _older(file), False
        return file.read(use_threads=False).select(FOLD.names).cast(FOLD), True
    except (pa.ArrowException, KeyError, OSError, OverflowError, *PARSE_ERRORS):
        return FOLD.empty_table(), False


def _older(file: pq.ParquetFile) -> pa.Table:
    """Reads an older compaction, which holds records as JSON."""
    tables = [FOLD.empty_table()]
    for batch in file.iter_batches(BATCH, columns=OLDER.names, use_threads=False):
        older = pa.Table.from_batches([batch]).cast(OLDER)
        texts = zip(older["name"].to_pylist(), older["json"].to_pylist(), strict=True)
        records = [parsed(name, text) for name, text in texts]
        listed = older.select(LISTED.names).filter(
            pa.array(record is not None for record in records)
        )
        columns = table_of(record for record in records if record is not None)
        tables.append(pa.table([*listed.itercolumns(), *columns.itercolumns()], schema=FOLD))
    return pa.concat_tables(tables)
