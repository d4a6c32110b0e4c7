"""Reads partitions of a shuffle from the files of its runs, by byte ranges.

A file holds segments, each with the rows of consecutive shards: a head (start of an Arrow stream:
schema, dictionaries, an empty batch), then a piece for each partition, record batches only. A head
and a piece together are a stream.

One index has the offsets of the pieces of all files: `count + 1` rows with an offset for each
segment, so that a partition's offsets lie together, then each different head once. A row begins
with its own CRC-32 and a CRC-32 over those of its pieces, so damage is noticed before decoding.
"""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.fingerprint import digest
from clipmill.metadata.schema import POSITION, SHARD, UID
from clipmill.metadata.storage import Storage
from clipmill.pipeline.dataset import TableFunction
from clipmill.pipeline.run_folder.rows import apply, only

OFFSET = np.dtype("<i8")
READ = pa.ipc.IpcReadOptions(use_threads=False)
READERS = 16  # concurrent reads of an object store
AHEAD_BYTES = 288_000_000  # of neighbouring partitions, read together
CHANGED = "not as it was stored"
Range = tuple[str, int, int]  # name of an object, offset, number of bytes


@dataclass(frozen=True)
class Partitions:
    """Rows partitioned by `shuffle`. Implements `Shards`."""

    folder: Storage
    data: str  # the folder of the files
    files: tuple[str, ...]  # of each segment, in the order of the rows
    index: str
    count: int
    functions: tuple[TableFunction, ...] = ()

    def __len__(self) -> int:
        return self.count

    def rows(self, index: int) -> int:
        return -1

    def batches(self, index: int, batch_rows: int = 1024) -> Iterator[pa.Table]:
        table = self.table(index)
        for start in range(0, len(table), batch_rows):
            yield table.slice(start, batch_rows)

    def table(self, index: int) -> pa.Table:
        return next(self.tables(index, index + 1))

    def tables(self, start: int, stop: int) -> Iterator[pa.Table]:
        """Yields partitions [start, stop); neighbours are read together."""
        offsets_PS, crc_P = self._places(start, stop)
        for first, last in blocks(offsets_PS, AHEAD_BYTES):
            block_PS = offsets_PS[first : last + 1]
            ranges = zip(self.files, block_PS[0].tolist(), np.ptp(block_PS, axis=0), strict=True)
            read_S = read_ranges(self.folder, [(file, a, int(size)) for file, a, size in ranges])
            bounds = pairwise((block_PS - block_PS[0]).tolist())
            for number, (begin_S, end_S) in enumerate(bounds, start=first):
                places = zip(read_S, begin_S, end_S, strict=True)
                pieces = [memoryview(read)[a:b] for read, a, b in places]
                if crc_of(list(map(zlib.crc32, pieces))) != crc_P[number]:
                    found = f"the rows of partition {start + number} are {CHANGED}"
                    raise DamagedError(self.folder.uri, self.index, found)
                yield apply(self.functions, self._decoded(pieces))

    def mapped(self, function: TableFunction) -> "Partitions":
        return replace(self, functions=(*self.functions, function))

    def digest(self, index: int) -> str:
        """Returns a digest of the partition's sources."""
        return digest([self.index, index])

    def select(self, names: Iterable[str]) -> "Partitions":
        columns = (UID.name, SHARD.name, POSITION.name, *names)
        return self.mapped(partial(only, columns))

    def _places(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Reads (stop - start + 1, S) offsets of pieces, ends included, and CRC-32s of rows."""
        size = _row_bytes(len(self.files))
        data = self.folder.read_at(self.index, start * size, (stop - start + 1) * size)
        rows = [data[row : row + size] for row in range(0, len(data), size)]
        if len(rows) <= stop - start or not all(map(_is_sound, rows)):
            raise DamagedError(self.folder.uri, self.index, CHANGED)
        numbers = np.frombuffer(data, OFFSET).reshape(len(rows), -1)
        return numbers[:, 2:], numbers[:, 1]

    def _decoded(self, pieces: Sequence[memoryview]) -> pa.Table:
        """Decodes the rows of one partition from its piece of each segment."""
        end = (self.count + 1) * _row_bytes(len(self.files))
        heads = heads_of(self.folder.uri, self.index, end, len(self.files))
        tables = []
        for head, group in groupby(zip(heads, pieces, strict=True), lambda pair: pair[0]):
            filled = [piece for _, piece in group if piece]
            if filled:
                stream = b"".join((head, *filled))
                tables.append(pa.ipc.open_stream(stream, options=READ).read_all())
            else:  # no rows: only the types count, not the dictionaries
                tables.append(pa.ipc.open_stream(head).schema.empty_table())
        whole = pa.concat_tables(tables, promote_options="default").unify_dictionaries()
        return whole.combine_chunks()


def tables_of(over: Any, start: int, stop: int) -> Iterator[pa.Table]:
    """Yields the tables of shards or partitions [start, stop); partitions are read together."""
    if isinstance(over, Partitions):
        yield from over.tables(start, stop)
    else:
        yield from map(over.table, range(start, stop))


def blocks(offsets_PS: NDArray[np.int64], most_bytes: int) -> list[tuple[int, int]]:
    """Returns [start, stop) of partitions to read at once: up to `most_bytes`, or a single one."""
    ends_P = (offsets_PS - offsets_PS[0]).sum(axis=1)
    spans, start = [], 0
    while start < len(ends_P) - 1:
        reach = int(np.searchsorted(ends_P, ends_P[start] + most_bytes, side="right")) - 1
        stop = min(max(start + 1, reach), len(ends_P) - 1)
        spans.append((start, stop))
        start = stop
    return spans


def read_ranges(folder: Storage, ranges: Sequence[Range]) -> list[bytes]:
    """Reads the bytes of each range, in order; concurrently from an object store."""
    if folder.is_local:
        return [_read(folder, place) for place in ranges]
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(partial(_read, folder), ranges))


def _read(folder: Storage, place: Range) -> bytes:
    name, start, size = place
    if not size:
        return b""
    if folder.is_local:
        return folder.read_at(name, start, size)
    return folder.read_opened(_opened(folder.uri, name), start, size)


@lru_cache(maxsize=4096)
def _opened(uri: str, name: str) -> pa.NativeFile:
    """Opens an object, which takes a request; cached, as bytes never change under a name."""
    return Storage(uri).open(name)


def index_of(
    offsets_PS: NDArray[np.int64], crc_PS: NDArray[np.int64], heads: Sequence[bytes]
) -> bytes:
    """Returns the index of a shuffle: offsets and CRC-32s of the pieces, heads of the segments."""
    different = list(dict.fromkeys(heads))
    numbers = [different.index(head) for head in heads]
    tail = np.array([*numbers, *map(len, different)], OFFSET)
    rows = [
        np.append(crc_of(crcs), offsets).astype(OFFSET).tobytes()
        for offsets, crcs in zip(offsets_PS, crc_PS.tolist(), strict=True)
    ]
    return b"".join(map(_with_crc, (*rows, b"".join((tail.tobytes(), *different)))))


def crc_of(crcs: Sequence[int]) -> int:
    """Returns one CRC-32 over several."""
    return zlib.crc32(np.array(crcs, OFFSET).tobytes())


def _row_bytes(segments: int) -> int:
    return (2 + segments) * OFFSET.itemsize


def _with_crc(data: bytes) -> bytes:
    """Returns the bytes, preceded by their CRC-32."""
    return np.array(zlib.crc32(data), OFFSET).tobytes() + data


def _is_sound(data: bytes) -> bool:
    return _with_crc(data[OFFSET.itemsize :]) == data


@lru_cache(maxsize=64)
def heads_of(uri: str, index: str, start: int, segments: int) -> tuple[bytes, ...]:
    """Reads the head of each segment from the end of an index; cached, as it never changes."""
    end = Storage(uri).read_at(index, start, 1 << 40)
    if not _is_sound(end):
        raise DamagedError(uri, index, CHANGED)
    tail = end[OFFSET.itemsize :]
    numbers = np.frombuffer(tail, OFFSET, segments)
    different = int(numbers.max()) + 1
    sizes = np.frombuffer(tail, OFFSET, different, segments * OFFSET.itemsize)
    ends = (segments + different) * OFFSET.itemsize + np.append(0, sizes.cumsum())
    heads = [tail[a:b] for a, b in pairwise(ends.tolist())]
    return tuple(heads[number] for number in numbers)
