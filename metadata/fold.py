"""Folds: a stage's records again, in few objects, so that a resume need not read each by itself.

While a stage runs, `records-0007.parquet` gets its next records, and is not written again: what a
fold costs is linear in shards. When the stage ends, or records of it are to be made again, one
`records.parquet` takes the place of these parts. A fold is a copy: where it is torn or older than a
record, the record itself is read.
"""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from metadata.storage import Entry, Storage

FOLDED = "records.parquet"
PART = re.compile(r"records-(\d{4,})\.parquet")
FOLD = pa.schema(
    [("name", pa.string()), ("size", pa.int64()), ("mtime_ns", pa.int64()), ("json", pa.string())]
)


class Foldable(Protocol):
    """A record, as far as a fold goes: an object's name, and its text."""

    @property
    def name(self) -> str: ...

    def to_json(self) -> str: ...


@dataclass
class Folds:
    """What the folds of a folder hold."""

    texts: dict[str, str] = field(default_factory=dict)  # of records as they lie there now
    names: set[str] = field(default_factory=set)  # of all they hold, also of records that changed
    parts: int = 0  # number of the next part
    are_one: bool = False  # there is a whole fold, and nothing else


def fold(folder: Storage, records: Iterable[Foldable]) -> None:
    """Writes `records.parquet`: these records, with the size and time their objects are listed.

    Then the parts go.
    """
    entries = {entry.name: entry for entry in folder.entries()}
    rows = [
        (record.name, there.size, there.mtime_ns, record.to_json())
        for record in records
        if (there := entries.get(record.name))
    ]
    _put(folder, FOLDED, rows)
    for name in entries:
        if PART.fullmatch(name):
            folder.delete(name)


def append(folder: Storage, number: int, records: Iterable[Foldable]) -> None:
    """Writes a part: these records, which were just stored. Nothing is listed for it."""
    texts = [(record.name, record.to_json()) for record in records]
    rows = [(name, len(text.encode()), None, text) for name, text in texts]
    _put(folder, f"records-{number:04d}.parquet", rows)


def read_folds(folder: Storage, entries: Mapping[str, Entry]) -> Folds:
    """What the folds among these objects hold of records that are still as they were folded.

    That is told by an object's size, and by its time: the one that is in the fold; of a part, which
    has none, an earlier one than the part's own.
    """
    found = Folds()
    parts = {int(match[1]): name for name in entries if (match := PART.fullmatch(name))}
    names = [*([FOLDED] if FOLDED in entries else []), *(parts[number] for number in sorted(parts))]
    with ThreadPoolExecutor(8) as pool:
        for name, rows in zip(names, pool.map(lambda n: _rows(folder, n), names), strict=True):
            found.are_one = rows is not None and names == [FOLDED]
            before_ns = entries[name].mtime_ns
            for record, size, mtime_ns, text in rows or ():
                found.names.add(record)
                there = entries.get(record)
                if there is None or there.size != size:
                    continue
                if there.mtime_ns == mtime_ns or (mtime_ns is None and there.mtime_ns < before_ns):
                    found.texts[record] = text
    found.parts = max(parts, default=-1) + 1
    return found


Row = tuple[str, int, int | None, str]


def _put(folder: Storage, name: str, rows: Sequence[Row]) -> None:
    columns = list(zip(*rows, strict=True)) or [()] * len(FOLD)
    table = pa.table(dict(zip(FOLD.names, columns, strict=True)), schema=FOLD)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    folder.put(name, sink.getvalue(), point="fold")


def _rows(folder: Storage, name: str) -> list[Row] | None:
    """What a fold holds; None where it is torn, which costs time."""
    try:
        # Not read_table: it imports datasets and starts threads, for one small file.
        table = pq.ParquetFile(pa.BufferReader(folder.read(name))).read(use_threads=False)
        table = table.select(FOLD.names).cast(FOLD)
    except (pa.ArrowException, KeyError, OSError):
        return None
    return list(zip(*(table[column].to_pylist() for column in FOLD.names), strict=True))
