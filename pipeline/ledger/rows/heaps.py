"""Rows in numbered heaps, of which one is read at a time; from some megabytes on scratch disk.

What is to be put together from all rows of a pool, as who names whom, is put together heap by heap:
memory is that of a heap, however many rows there are.
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

# Shapes: N rows, H heaps.

HEAP_ROWS = 1 << 20  # rows of a pool for which there is one heap
HELD_BYTES = 8 << 20  # that are held until they are written, and given at a time

Rows = NDArray[Any]
Columns = list[tuple[str, str]]  # names and types of what a row has


class Heaps:
    """Structured rows of one type, in `count` heaps of a file, which goes as it is closed.

    `rows` are those of the pool: of what each of them gives, a heap has some HEAP_ROWS.
    """

    def __init__(self, rows: int, dtype: Columns) -> None:
        self.count, self.dtype = -(-rows // HEAP_ROWS), np.dtype(dtype)
        self._file = tempfile.TemporaryFile(dir=scratch_folder())  # noqa: SIM115  # see close
        self._held: list[tuple[NDArray[np.int64], Rows]] = []
        self._held_bytes = 0
        self._bounds: list[NDArray[np.int64]] = []  # (H + 1,) rows of the file, of each writing
        self._end = 0

    def add(self, heap_N: NDArray[np.int64], row_N: Rows) -> None:
        """Rows, each to its heap. StageError where the disk is full."""
        self._held.append((heap_N, row_N))
        self._held_bytes += row_N.nbytes
        if self._held_bytes >= HELD_BYTES:
            self._write()

    def pieces(self, heap: int) -> Iterator[Rows]:
        """The rows of a heap in the order in which they came, some HELD_BYTES at a time."""
        found: list[Rows] = []
        rows = 0
        for bounds in self._bounds:
            start, stop = bounds[heap : heap + 2].tolist()
            if stop > start:
                self._file.seek(start * self.dtype.itemsize)
                read = self._file.read((stop - start) * self.dtype.itemsize)
                found.append(np.frombuffer(read, self.dtype))
                rows += stop - start
            if rows * self.dtype.itemsize >= HELD_BYTES:
                yield np.concatenate(found)
                found, rows = [], 0
        if self._held:  # those of a small pool all are
            heap_N, row_N = self._joined()
            found.append(row_N[heap_N == heap])
        if any(map(len, found)):
            yield np.concatenate(found)

    def of(self, hash_N: NDArray[np.uint64]) -> NDArray[np.int64]:
        """(N,) a heap by hash."""
        return ((hash_N >> np.uint64(32)) % np.uint64(self.count)).astype(np.int64)

    def close(self) -> None:
        self._file.close()

    def _joined(self) -> tuple[NDArray[np.int64], Rows]:
        """The rows that are held."""
        if len(self._held) > 1:
            heap_N, row_N = (np.concatenate(them) for them in zip(*self._held, strict=True))
            self._held = [(heap_N, row_N)]
        return self._held[0]

    def _write(self) -> None:
        heap_N, row_N = self._joined()
        self._held, self._held_bytes = [], 0
        # Numbers of 16 bits are sorted by radix.
        order_N = np.argsort(heap_N.astype(np.min_scalar_type(self.count)), kind="stable")
        try:
            self._file.seek(0, os.SEEK_END)
            self._file.write(row_N[order_N].tobytes())
            self._file.flush()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            found, do = (
                f"the disk is full: {error.strerror}",
                "free space there, or set TMPDIR",
            )
            raise StageError(found, tempfile.gettempdir(), do) from error
        sizes_H = np.bincount(heap_N, minlength=self.count)
        self._bounds.append(self._end + np.append(0, np.cumsum(sizes_H)))
        self._end += len(row_N)


def uid_hash(uid: pa.ChunkedArray) -> NDArray[np.uint64]:
    """(N,) 64 bits of each uid, for its heap: uids of a pool's own may be close to one another."""
    return coin_hash(uid, seed=0, stage="", purpose="heap")


def structured(dtype: Columns, **columns: Rows) -> Rows:
    """(N,) rows of these columns."""
    rows = np.empty(len(next(iter(columns.values()))), dtype)
    for name, values in columns.items():
        rows[name] = values
    return rows
