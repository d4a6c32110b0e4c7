"""Copies a stage's records into few objects, so that a resume need not read each by itself.

While a stage runs, `records-0007.parquet` gets its next records, and is not written again: what
that costs is linear in shards. When the stage ends, or records of it are to be made again, one
`records.parquet` takes the place of these parts. Where such a copy is torn or older than a record,
the record itself is read.
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

from clipmill.metadata.limits import UNPARSED
from clipmill.metadata.record import Record, parsed, record_name
from clipmill.metadata.records import RECORD, table_of
from clipmill.metadata.storage import Storage

BATCH = 4096
COMPACTED = "records.parquet"
PART = re.compile(r"records-(\d{4,})\.parquet")
LISTED = pa.schema([("name", pa.string()), ("size", pa.int64()), ("mtime_ns", pa.int64())])
FOLD = pa.schema([*LISTED, *RECORD])
OLDER = pa.schema([*LISTED, ("json", pa.string())])  # until November 2026: read, not written


@dataclass
class Compacted:
    """What the compactions of a folder hold."""

    records: pa.Table  # name, and a record's columns: as they lie there now
    changed: pa.Table  # the same of those that do not
    parts: int  # number of the next part
    are_one: bool  # there is a whole compaction, nothing else, and all it holds lies there so


def compact(folder: Storage, records: pa.Table) -> None:
    """Writes `records.parquet`: these records, with the size and time their objects are listed.

    Then the parts go.
    """
    listing = folder.listing()
    name = _names(records)
    at = pc.index_in(name, value_set=listing["name"])
    listed = [name, listing["size"].take(at), listing["mtime_ns"].take(at)]
    table = pa.table([*listed, *records.itercolumns()], schema=FOLD)
    _put(folder, COMPACTED, table.filter(at.is_valid()))
    for other in listing["name"].to_pylist():
        if PART.fullmatch(other):
            folder.delete(other)


def append(folder: Storage, number: int, records: Iterable[Record]) -> None:
    """Writes a part: these records, which were just stored. Nothing is listed for it."""
    sizes = [len(record.to_json().encode()) for record in records]
    made = table_of(records)
    listed = [_names(made), pa.array(sizes, pa.int64()), pa.nulls(len(made), pa.int64())]
    table = pa.table([*listed, *made.itercolumns()], schema=FOLD)
    _put(folder, f"records-{number:04d}.parquet", table)


def read_compacted(folder: Storage, listing: pa.RecordBatch) -> Compacted:
    """Records that the compactions in a folder's listing hold, and that are still as copied.

    An object's size and time tell: the time in the compaction; of a part, which holds none, one
    earlier than the part's own.
    """
    parts, has_whole = {}, False
    for name in listing["name"].filter(pc.starts_with(listing["name"], "records")).to_pylist():
        has_whole |= name == COMPACTED
        if match := PART.fullmatch(name):
            parts[int(match[1])] = name
    names = [*([COMPACTED] if has_whole else []), *(parts[number] for number in sorted(parts))]

    def read(name: str) -> bytes:
        try:
            return folder.read(name)
        except OSError:  # as a torn one: it costs time
            return b""

    are_one, found, others = names == [COMPACTED], [], [FOLD.empty_table()]
    with ThreadPoolExecutor(8) as pool:
        # One is read here: a thread for it costs more than the rest of a small scan.
        texts = pool.map(read, names) if len(names) > 1 else map(read, names)
        for name, data in zip(names, texts, strict=True):
            held, is_whole = _read(data)
            is_so = _are_as_listed(held, listing, name)
            if pc.all(is_so, min_count=0).as_py():
                found.append(held)
            else:
                found.append(held.filter(is_so))
                others.append(held.filter(pc.invert(is_so)))
            are_one = are_one and is_whole and len(found[-1]) == len(held)
    records = found[0] if len(found) == 1 else _last(pa.concat_tables([FOLD.empty_table(), *found]))
    changed = _last(pa.concat_tables(others))
    return Compacted(records, changed, max(parts, default=-1) + 1, are_one)


def _are_as_listed(held: pa.Table, listing: pa.RecordBatch, compaction: str) -> pa.BooleanArray:
    """Whether the object of each row lies there as it was compacted."""
    at = pc.index_in(held["name"].combine_chunks(), value_set=listing["name"])
    at_R = at.fill_null(0).to_numpy()
    mtime_R, size_R = (listing[name].to_numpy()[at_R] for name in ("mtime_ns", "size"))
    put_ns = listing["mtime_ns"][listing["name"].index(compaction).as_py()].as_py()
    folded_R = held["mtime_ns"].fill_null(0).to_numpy()
    is_time_R = np.where(held["mtime_ns"].is_null(), mtime_R < put_ns, mtime_R == folded_R)
    is_so_R = is_time_R & (size_R == held["size"].to_numpy()) & np.asarray(at.is_valid())
    return pa.array(is_so_R)


def _last(held: pa.Table) -> pa.Table:
    """Of rows of one name the last."""
    code_R = held["name"].combine_chunks().dictionary_encode().indices.to_numpy()
    _, from_end = np.unique(code_R[::-1], return_index=True)
    if len(from_end) == len(code_R):
        return held
    return held.take(np.sort(len(code_R) - 1 - from_end))


def _names(records: pa.Table) -> pa.Array:
    numbers = zip(records["shard"].to_pylist(), records["number"].to_pylist(), strict=True)
    return pa.array((record_name(*number) for number in numbers), pa.string())


def _put(folder: Storage, name: str, records: pa.Table) -> None:
    sink = io.BytesIO()
    # Most are small: zstd and dictionaries would take three times as long to read.
    pq.write_table(records, sink, use_dictionary=False, write_page_checksum=True)
    folder.put(name, sink.getvalue(), point="compaction")


def _read(data: bytes) -> tuple[pa.Table, bool]:
    """What a compaction holds, and whether that is all it should, in today's columns."""
    try:
        # Not read_table: it imports datasets and starts threads, for one small file.
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        if "json" in file.schema_arrow.names:
            return _older(file), False
        return file.read(use_threads=False).select(FOLD.names).cast(FOLD), True
    except (pa.ArrowException, KeyError, OSError, OverflowError, *UNPARSED):
        return FOLD.empty_table(), False


def _older(file: pq.ParquetFile) -> pa.Table:
    """A compaction that holds the records' texts."""
    tables = [FOLD.empty_table()]
    for batch in file.iter_batches(BATCH, columns=OLDER.names, use_threads=False):
        held = pa.Table.from_batches([batch]).cast(OLDER)
        texts = zip(held["name"].to_pylist(), held["json"].to_pylist(), strict=True)
        records = [parsed(name, text) for name, text in texts]
        listed = held.select(LISTED.names).filter(pa.array(it is not None for it in records))
        made = table_of(it for it in records if it is not None)
        tables.append(pa.table([*listed.itercolumns(), *made.itercolumns()], schema=FOLD))
    return pa.concat_tables(tables)
