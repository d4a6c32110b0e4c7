"""Shuffles: a run of shards by partition in one file, and which partition a row goes to.

What is moved is decided by the counts of rows alone, never by workers: a run has some 7.5 million
rows, 180 MB at 24 bytes a row, and a shuffle at least 64 runs where there are many shards, 16 where
there are few. In memory is a segment of a run at a time, bounded by bytes whatever the width of a
row.
"""

import hashlib
import os
import zlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.fingerprint import digest
from clipmill.metadata.schema import SHARD
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.own_shards import neighbours
from clipmill.pipeline.engine.units import UnitTask
from clipmill.pipeline.run_folder.partitions import (
    CHANGED,
    OFFSET,
    index_of,
    read_ranges,
    tables_of,
)

RUN_ROWS = 7_500_000
FEW_RUNS, MANY_RUNS = 16, 64  # the least of a small and of a large pool, for workers to share
RUN_SHARDS = 6  # of a pool between these: a run costs a file, and a piece a partition
SEGMENT_BYTES = 288_000_000  # of rows as they are in memory
OF_MEMORY = 6  # a segment is at most this part of what its stage declares: it is there up to twice


def runs_of(sizes: list[int]) -> list[list[int]]:
    """First shard and last + 1 of each run, from the rows of each shard."""
    least = min(max(FEW_RUNS, len(sizes) // RUN_SHARDS), MANY_RUNS)
    return [[start, stop] for start, stop in neighbours(sizes, RUN_ROWS, least)]


def segment_bytes(memory_gb: float) -> int:
    """The most bytes of a segment, for a stage that declares so much memory."""
    return min(SEGMENT_BYTES, int(memory_gb * 1e9) // OF_MEMORY)


def split_run(
    over: Any,
    key: Callable[[pa.Table], Any],
    count: int,
    data: str,
    most_bytes: int,
    run: list[int],
    task: UnitTask,
) -> dict[str, Any]:
    """The rows of a run of shards by partition, as a file of segments; its end says where they lie.

    In a partition rows are in the order of the shards, and of each shard.
    """
    name = f"{data}/{task.key}.arrows"
    with task.folder.scratch(name) as path:
        with path.open("w+b") as file:
            places, heads = [], []
            for rows in segments(tables_of(over, *run), most_bytes):
                offsets, crcs, head = write_segment(file, rows, key, count)
                places.append(offsets + crcs)
                heads.append(head)
            at = file.tell()
            sizes = [len(head) for head in heads]
            numbers = np.array([*np.ravel(places), *sizes], OFFSET)
            table = b"".join((numbers.tobytes(), *heads))
            file.write(table)
            size = file.tell()
        task.folder.commit(path, name)
    said = {"file": name, "size": size, "segments": len(heads), "at": at}
    return said | {"digest": hashlib.sha256(table).hexdigest()[:32]}


def segments(tables: Iterator[pa.Table], most_bytes: int) -> Iterator[list[pa.Table]]:
    """Tables that hold so many bytes together, or one that holds more.

    Whoever gets the tables may take them out of their list.
    """
    held: list[pa.Table] = []
    size = 0
    for table in tables:
        table_bytes = table.nbytes
        if held and size + table_bytes > most_bytes:
            yield held
            held, size = [], 0
        size += table_bytes
        held.append(table)
    yield held


class _Summed:
    """A file, and the CRC-32 of what was written to it since that was set to 0."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self.tell, self.flush, self._write = file.tell, file.flush, file.write
        self.crc = 0

    def write(self, data: Any) -> int:
        self.crc = zlib.crc32(data, self.crc)
        return self._write(data)


def write_segment(
    file: BinaryIO, rows: list[pa.Table], key: Callable[[pa.Table], Any], count: int
) -> tuple[list[int], list[int], bytes]:
    """Where each partition begins in the file, and the last one ends; the CRC-32 of each, and a 0;
    the head they share."""
    whole = pa.concat_tables(rows, promote_options="default").unify_dictionaries().combine_chunks()
    rows.clear()
    partition = key(whole)  # of all rows at once: a call for a shard costs more than its rows
    # Numbers of 16 bits are sorted by radix: 8 times as fast as those of 64.
    order = np.argsort(partition.astype(np.min_scalar_type(count)), kind="stable")
    bounds = np.append(0, np.bincount(partition, minlength=count).cumsum())
    whole = whole.take(pa.array(order)).unify_dictionaries().combine_chunks()
    options = pa.ipc.IpcWriteOptions(compression="lz4", unify_dictionaries=True, use_threads=False)
    begin, summed, crcs = file.tell(), _Summed(file), []
    with pa.ipc.new_stream(summed, whole.schema, options=options) as writer:
        writer.write_batch(no_rows(whole))  # after the dictionaries
        offsets = [file.tell()]
        for start, stop in pairwise(bounds.tolist()):
            summed.crc = 0
            if stop > start:
                writer.write_table(whole.slice(start, stop - start))
            offsets.append(file.tell())
            crcs.append(summed.crc)
    file.flush()
    return offsets, [*crcs, 0], os.pread(file.fileno(), offsets[0] - begin, begin)


def no_rows(table: pa.Table) -> pa.RecordBatch:
    """No row of a table, with its dictionaries."""
    columns = [
        column.chunk(0).slice(0, 0) if column.num_chunks else pa.array([], column.type)
        for column in table.columns
    ]
    return pa.RecordBatch.from_arrays(columns, schema=table.schema)


def put_index(folder: Storage, data: str, results: list[dict[str, Any]], count: int) -> str:
    """Stores the index of what `split_run` left, where that lies there; its name, in any case.

    The name changes with what the files hold.
    """
    name = f"{data}/{digest([one['digest'] for one in results])[:16]}.index"
    sizes = sizes_in(folder, data)
    if results and all(sizes.get(one["file"]) == one["size"] for one in results):
        index = index_of(*ends_of(folder, results, count))
        if sizes.get(name) != len(index):
            folder.put(name, index, point="index")
    return name


def sizes_in(folder: Storage, data: str) -> dict[str, int]:
    """The size of each object in a folder."""
    return {f"{data}/{entry.name}": entry.size for entry in folder.entries(data)}


def ends_of(
    folder: Storage, results: list[dict[str, Any]], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[bytes]]:
    """(P + 1, S) where each partition begins in each segment, and the CRC-32 of each; the heads.

    From the files' ends; DamagedError where one is not as it was written.
    """
    ends = [(one["file"], one["at"], one["size"] - one["at"]) for one in results]
    places, heads = [], []
    for one, end in zip(results, read_ranges(folder, ends), strict=True):
        if hashlib.sha256(end).hexdigest()[:32] != one["digest"]:
            raise DamagedError(folder.uri, one["file"], CHANGED)
        number = one["segments"]
        numbers = np.frombuffer(end, OFFSET, number * (2 * count + 3))
        places.append(numbers[:-number].reshape(number, 2, count + 1))
        stops = np.append(0, numbers[-number:].cumsum()) + numbers.nbytes
        heads += [end[a:b] for a, b in pairwise(stops.tolist())]
    offsets_PS, crc_PS = np.concatenate(places).transpose(1, 2, 0)
    return offsets_PS, crc_PS, heads


def by_hash(key: str, count: int, table: pa.Table) -> NDArray[np.int64]:
    """The partition of each row: equal keys get the same one, and so do all nulls."""
    import polars as pl  # late, as in stages: a plan needs none

    hashes = pl.Series(key, table[key]).hash(seed=0)
    return (hashes.to_numpy() % np.uint64(count)).astype(np.int64)


def by_home(starts: NDArray[np.int64], table: pa.Table) -> Any:
    """The partition of each row: that of the run of shards it lives in, by their first ones."""
    return np.searchsorted(starts, table[SHARD.name].to_numpy(), side="right") - 1
