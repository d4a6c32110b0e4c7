"""Caches rows on each machine's scratch disk, so that rounds over them read storage once.

The first worker of a machine to read a shard leaves a copy for the others: an uncompressed Arrow
file, mapped into memory. If a copy is missing or damaged, or the disk has no room for it, storage
is read.
"""

import contextlib
import os
import shutil
import struct
import uuid
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import pyarrow as pa

from clipmill.metadata.faults import reached
from clipmill.metadata.fingerprint import digest
from clipmill.metadata.schema import POSITION, SHARD, UID
from clipmill.metadata.scratch import shared_scratch
from clipmill.pipeline.dataset import TableFunction
from clipmill.pipeline.run_folder.partitions import Partitions
from clipmill.pipeline.run_folder.rows import JoinedShards, PoolShards, apply, only

KEPT_FREE = 4 << 30  # bytes that copies leave free, or a tenth of a smaller disk
MAPPED = 256  # copies that a process keeps mapped: pages of the disk's cache, none of its own
CHECKSUM = struct.Struct("<I")  # CRC-32 of the Arrow stream, at the end of its file


@dataclass(frozen=True)
class LocalShards:
    """Shards that each machine caches once it has read them. Implements `Shards`."""

    over: "PoolShards | JoinedShards | Partitions | LocalShards"
    folder: str  # name of the scratch folder that the workers of a machine share
    number: int  # counts the `keep_local` calls of the stage
    functions: tuple[TableFunction, ...] = ()

    def __len__(self) -> int:
        return len(self.over)

    def rows(self, index: int) -> int:
        return self.over.rows(index)

    def batches(self, index: int, batch_rows: int = 1024) -> Iterator[pa.Table]:
        table = self.table(index)
        for start in range(0, max(1, len(table)), batch_rows):
            yield table.slice(start, batch_rows)

    def table(self, index: int) -> pa.Table:
        folder = shared_scratch(self.folder)
        if folder is None:
            return apply(self.functions, self.over.table(index))
        path = folder / f"{self.number}-{index:06d}-{self.over.digest(index)[:16]}.arrow"
        table = read_copy(path)
        if table is None:
            table = self.over.table(index).unify_dictionaries().combine_chunks()
            put_copy(path, table)
        return apply(self.functions, table)

    def mapped(self, function: TableFunction) -> "LocalShards":
        return replace(self, functions=(*self.functions, function))

    def select(self, names: Iterable[str]) -> "LocalShards":
        return self.mapped(partial(only, (UID.name, SHARD.name, POSITION.name, *names)))

    def digest(self, index: int) -> str:
        """Returns a digest of the shard's sources."""
        return digest([self.number, self.over.digest(index)])


def read_copy(path: Path) -> pa.Table | None:
    """Returns the rows of a copy, mapped from disk; None if it is missing or damaged.

    A file that this process has mapped before is not checked again: a round reads the same pages.
    """
    try:
        state = path.stat()
    except OSError:
        return None
    return mapped(path, state.st_ino, state.st_size, state.st_mtime_ns)


@lru_cache(MAPPED)
def mapped(path: Path, *_: int) -> pa.Table | None:
    """Maps a copy; the state of its file is part of the key, so a changed file is mapped anew."""
    try:
        with pa.memory_map(str(path)) as file:
            whole = file.read_buffer()
        stream = whole.slice(0, max(0, whole.size - CHECKSUM.size))
        if CHECKSUM.pack(zlib.crc32(stream)) != whole.slice(stream.size).to_pybytes():
            return None
        return pa.ipc.open_stream(stream).read_all()
    except (OSError, pa.ArrowException):
        return None


def put_copy(path: Path, table: pa.Table) -> None:
    """Stores a copy atomically; none if the disk has no room or fails."""
    beside = path.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        disk = shutil.disk_usage(path.parent)
        if table.nbytes > disk.free - min(KEPT_FREE, disk.total // 10):
            return
        with pa.OSFile(str(beside), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        with pa.memory_map(str(beside)) as file:
            checksum = zlib.crc32(file.read_buffer())
        with beside.open("ab") as end:
            end.write(CHECKSUM.pack(checksum))
        reached("copy", path.name)
        os.replace(beside, path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
