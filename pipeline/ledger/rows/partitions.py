"""Partitions rows by number or hash, and spills them to scratch disk.

Joins over all rows of a pool read one partition at a time, which bounds their memory.
"""

import errno
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.scratch import scratch_folder
from clipmill.metadata.uid import coin_hash
from clipmill.pipeline.errors import StageError

# Shapes: N rows, P partitions.

PARTITION_ROWS = 1 << 20  # rows of a pool per partition
HELD_BYTES = 8 << 20  # write buffer, and size of a piece that is read

Rows = NDArray[Any]
Columns = list[tuple[str, str]]  # names and types of a row's fields


class Partitions:
    """Structured rows of one type in `count` partitions of a temporary file, deleted on close.

    `rows` is the size of the pool: a partition gets about PARTITION_ROWS of its rows.
    """

    def __init__(self, rows: int, dtype: Columns) -> None:
        self.count, self.dtype = -(-rows // PARTITION_ROWS), np.dtype(dtype)
        self._file = tempfile.TemporaryFile(dir=scratch_folder())  # noqa: SIM115  # see close
        self._held: list[tuple[NDArray[np.int64], Rows]] = []
        self._held_bytes = 0
        self._bounds: list[NDArray[np.int64]] = []  # (P + 1,) row bounds in the file, per write
        self._end = 0

    def add(self, partition_N: NDArray[np.int64], row_N: Rows) -> None:
        """Adds rows, each to its partition. StageError if the disk is full."""
        self._held.append((partition_N, row_N))
        self._held_bytes += row_N.nbytes
        if self._held_bytes >= HELD_BYTES:
            self._write()

    def pieces(self, partition: int) -> Iterator[Rows]:
        """Yields the rows of a partition in insertion order, about HELD_BYTES at a time."""
        parts: list[Rows] = []
        rows = 0
        for bounds in self._bounds:
            start, stop = bounds[partition : partition + 2].tolist()
            if stop > start:
                self._file.seek(start * self.dtype.itemsize)
                read = self._file.read((stop - start) * self.dtype.itemsize)
                parts.append(np.frombuffer(read, self.dtype))
                rows += stop - start
            if rows * self.dtype.itemsize >= HELD_BYTES:
                yield np.concatenate(parts)
                parts, rows = [], 0
        if self._held:  # a small pool is never written
            partition_N, row_N = self._joined()
            parts.append(row_N[partition_N == partition])
        if any(map(len, parts)):
            yield np.concatenate(parts)

    def partition_of(self, hash_N: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Returns (N,) the partition of each hash."""
        return ((hash_N >> np.uint64(32)) % np.uint64(self.count)).astype(np.int64)

    def close(self) -> None:
        self._file.close()

    def _joined(self) -> tuple[NDArray[np.int64], Rows]:
        """Returns the buffered rows as one piece."""
        if len(self._held) > 1:
            partition_N, row_N = (
                np.concatenate(columns) for columns in zip(*self._held, strict=True)
            )
            self._held = [(partition_N, row_N)]
        return self._held[0]

    def _write(self) -> None:
        partition_N, row_N = self._joined()
        self._held, self._held_bytes = [], 0
        # numpy sorts 16-bit integers by radix.
        order_N = np.argsort(partition_N.astype(np.min_scalar_type(self.count)), kind="stable")
        try:
            self._file.seek(0, os.SEEK_END)
            self._file.write(row_N[order_N].tobytes())
            self._file.flush()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            problem, do = (f"the disk is full: {error.strerror}", "free space there, or set TMPDIR")
            raise StageError(problem, tempfile.gettempdir(), do) from error
        sizes_P = np.bincount(partition_N, minlength=self.count)
        self._bounds.append(self._end + np.append(0, np.cumsum(sizes_P)))
        self._end += len(row_N)


def uid_hash(uid: pa.ChunkedArray) -> NDArray[np.uint64]:
    """Returns (N,) 64-bit hashes of uids, for their partitions: uids may be close together."""
    return coin_hash(uid, seed=0, stage="", purpose="heap")


def structured(dtype: Columns, **columns: Rows) -> Rows:
    """Returns (N,) structured rows of these columns."""
    rows = np.empty(len(next(iter(columns.values()))), dtype)
    for name, values in columns.items():
        rows[name] = values
    return rows
