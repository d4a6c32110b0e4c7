"""Shuffles rows: writes a file for each run of neighbouring shards, its rows by partition.

Runs depend on row counts only, never on workers: a run has about 7.5 million rows (180 MB at 24
bytes a row), and a shuffle has at least 64 runs with many shards, 16 with few. One segment of a run
is in memory at a time, bounded in bytes for rows of any width.
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
from clipmill.pipeline.run_folder import partitions

RUN_ROWS = 7_500_000
FEW_RUNS, MANY_RUNS = 16, 64  # least runs of a small and of a large pool, for workers to share
RUN_SHARDS = 6  # of a run in pools of middle size: more runs are more files, in more pieces
SEGMENT_BYTES = 288_000_000  # of rows in memory
OF_MEMORY = 6  # a segment takes at most 1/6 of its stage's memory; up to two copies exist


def runs_of(sizes: list[int]) -> list[list[int]]:
    """Returns [start, stop) of each run of shards, from the rows of each shard."""
    least = min(max(FEW_RUNS, len(sizes) // RUN_SHARDS), MANY_RUNS)
    return [[start, stop] for start, stop in neighbours(sizes, RUN_ROWS, least)]


def segment_bytes(memory_gb: float) -> int:
    """Returns the most bytes of a segment, for a stage that declares `memory_gb`."""
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
    """Stores the rows of a run of shards by partition: a file of segments, with offsets at its end.

    Within a partition, rows keep the order of shards and of rows within each shard.
    """
    name = f"{data}/{task.key}.arrows"
    with task.folder.scratch(name) as path:
        with path.open("w+b") as file:
            places, heads = [], []
            for rows in segments(partitions.tables_of(over, *run), most_bytes):
                offsets, crcs, head = write_segment(file, rows, key, count)
                places.append(offsets + crcs)
                heads.append(head)
            end = file.tell()
            sizes = [len(head) for head in heads]
            numbers = np.array([*np.ravel(places), *sizes], partitions.OFFSET)
            table = b"".join((numbers.tobytes(), *heads))
            file.write(table)
            size = file.tell()
        task.folder.commit(path, name)
    sha256 = hashlib.sha256(table).hexdigest()[:32]
    return {"file": name, "size": size, "segments": len(heads), "at": end, "digest": sha256}


def segments(tables: Iterator[pa.Table], most_bytes: int) -> Iterator[list[pa.Table]]:
    """Groups tables up to `most_bytes` each; a larger table is a group of its own.

    The caller may empty a list it gets.
    """
    group: list[pa.Table] = []
    size = 0
    for table in tables:
        table_bytes = table.nbytes
        if group and size + table_bytes > most_bytes:
            yield group
            group, size = [], 0
        size += table_bytes
        group.append(table)
    yield group


class _ChecksummedFile:
    """A file with the CRC-32 of the bytes written since `crc` was last set to 0."""

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
    """Writes rows sorted by partition into one file.

    Returns where each of the `count` partitions begins, and the end; a CRC-32 of each, and a 0 for
    the end; and the head, which is the schema with its dictionaries.
    """
    whole = pa.concat_tables(rows, promote_options="default").unify_dictionaries().combine_chunks()
    rows.clear()
    partition = key(whole)  # one call: a call for each shard would cost more than its rows
    # NumPy sorts 16-bit integers by radix: 8 times as fast as 64-bit ones.
    order = np.argsort(partition.astype(np.min_scalar_type(count)), kind="stable")
    bounds = np.append(0, np.bincount(partition, minlength=count).cumsum())
    whole = whole.take(pa.array(order)).unify_dictionaries().combine_chunks()
    options = pa.ipc.IpcWriteOptions(compression="lz4", unify_dictionaries=True, use_threads=False)
    no_rows = pa.RecordBatch.from_pylist([], whole.schema)
    begin, summed, crcs = file.tell(), _ChecksummedFile(file), []
    with pa.ipc.new_stream(summed, whole.schema, options=options) as writer:
        # An empty batch first, so that the head holds schema and dictionaries.
        writer.write_batch((whole.to_batches() or [no_rows])[0].slice(0, 0))
        offsets = [file.tell()]
        for start, stop in pairwise(bounds.tolist()):
            summed.crc = 0
            if stop > start:
                writer.write_table(whole.slice(start, stop - start))
            offsets.append(file.tell())
            crcs.append(summed.crc)
    file.flush()
    return offsets, [*crcs, 0], os.pread(file.fileno(), offsets[0] - begin, begin)


def put_index(folder: Storage, data: str, results: list[dict[str, Any]], count: int) -> str:
    """Stores the index of the files of `split_run`, if all exist; returns its name in any case.

    The name depends on the content of the files.
    """
    name = f"{data}/{digest([result['digest'] for result in results])[:16]}.index"
    sizes = sizes_in(folder, data)
    if results and all(sizes.get(result["file"]) == result["size"] for result in results):
        index = partitions.index_of(*ends_of(folder, results, count))
        if sizes.get(name) != len(index):
            folder.put(name, index, point="index")
    return name


def sizes_in(folder: Storage, data: str) -> dict[str, int]:
    """Returns the size of each object in folder `data`, by path."""
    return {f"{data}/{entry.name}": entry.size for entry in folder.entries(data)}


def ends_of(
    folder: Storage, results: list[dict[str, Any]], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[bytes]]:
    """Reads the files' ends: (P + 1, S) offsets and CRC-32s of partitions by segment; S heads.

    Raises DamagedError if an end has changed.
    """
    ends = [(result["file"], result["at"], result["size"] - result["at"]) for result in results]
    places, heads = [], []
    for result, end in zip(results, partitions.read_ranges(folder, ends), strict=True):
        if hashlib.sha256(end).hexdigest()[:32] != result["digest"]:
            raise DamagedError(folder.uri, result["file"], partitions.CHANGED)
        number = result["segments"]
        numbers = np.frombuffer(end, partitions.OFFSET, number * (2 * count + 3))
        places.append(numbers[:-number].reshape(number, 2, count + 1))
        stops = np.append(0, numbers[-number:].cumsum()) + numbers.nbytes
        heads += [end[a:b] for a, b in pairwise(stops.tolist())]
    offsets_PS, crc_PS = np.concatenate(places).transpose(1, 2, 0)
    return offsets_PS, crc_PS, heads


def by_hash(key: str, count: int, table: pa.Table) -> NDArray[np.int64]:
    """Returns (N,) partitions by hash of the key; all nulls share one."""
    if count == 1:
        return np.zeros(len(table), np.int64)
    import polars as pl  # late, as in stages: planning does not need it

    hashes = pl.Series(key, table[key]).hash(seed=0)
    return (hashes.to_numpy() % np.uint64(count)).astype(np.int64)


def by_home(starts: NDArray[np.int64], table: pa.Table) -> Any:
    """Returns (N,) partitions: the run of each row's shard, by the runs' first shards `starts`."""
    return np.searchsorted(starts, table[SHARD.name].to_numpy(), side="right") - 1
