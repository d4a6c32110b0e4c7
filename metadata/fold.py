"""Folds: a stage's records again, in few objects, so that a resume need not read each by itself.

While a stage runs, `records-0007.parquet` gets its next records, and is not written again: what a
fold costs is linear in shards. When the stage ends, or records of it are to be made again, one
`records.parquet` takes the place of these parts. A fold is a copy: where it is torn or older than a
record, the record itself is read.
"""

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from metadata.storage import Entry, Storage

R = TypeVar("R")
BATCH = 4096
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
class Folds(Generic[R]):
    """What the folds of a folder hold."""

    records: dict[str, R] = field(default_factory=dict)  # as they lie there now
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


def read_folds(
    folder: Storage, entries: Mapping[str, Entry], parse: Callable[[str, str], R]
) -> Folds[R]:
    """What the folds among these objects hold of records that are still as they were folded.

    Their texts are parsed as they are read, so that few are held: `parse(name, text)`.

    That is told by an object's size, and by its time: the one that is in the fold; of a part, which
    has none, an earlier one than the part's own.
    """
    found = Folds[R]()
    parts = {int(match[1]): name for name in entries if (match := PART.fullmatch(name))}
    names = [*([FOLDED] if FOLDED in entries else []), *(parts[number] for number in sorted(parts))]

    def read(name: str) -> bytes:
        try:
            return folder.read(name)
        except OSError:  # as a torn one: it costs time
            return b""

    with ThreadPoolExecutor(8) as pool:
        for name, data in zip(names, pool.map(read, names), strict=True):
            found.are_one = names == [FOLDED]
            before_ns = entries[name].mtime_ns
            try:
                for record, size, mtime_ns, text in _rows(data):
                    found.names.add(record)
                    there = entries.get(record)
                    if there is None or there.size != size:
                        continue
                    is_older = mtime_ns is None and there.mtime_ns < before_ns
                    if there.mtime_ns == mtime_ns or is_older:
                        found.records[record] = parse(record, text)
            except (pa.ArrowException, KeyError, OSError):
                found.are_one = False
    found.parts = max(parts, default=-1) + 1
    return found


Row = tuple[str, int, int | None, str]


def _put(folder: Storage, name: str, rows: Sequence[Row]) -> None:
    columns = list(zip(*rows, strict=True)) or [()] * len(FOLD)
    table = pa.table(dict(zip(FOLD.names, columns, strict=True)), schema=FOLD)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    folder.put(name, sink.getvalue(), point="fold")


def _rows(data: bytes) -> Iterator[Row]:
    """What a fold holds, of which few are objects at a time."""
    # Not read_table: it imports datasets and starts threads, for one small file.
    for batch in pq.ParquetFile(pa.BufferReader(data)).iter_batches(BATCH, use_threads=False):
        table = pa.Table.from_batches([batch]).select(FOLD.names).cast(FOLD)
        yield from zip(*(table[column].to_pylist() for column in FOLD.names), strict=True)
