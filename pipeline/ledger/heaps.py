"""Rows on scratch disk in numbered heaps, of which one is read at a time.

What is to be put together from all rows of a pool, as who names whom, is put together heap by heap:
memory is that of a heap, however many rows there are.
"""

import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from metadata.scratch import scratch_folder
from metadata.uid import coin_hash

# Shapes: N rows, H heaps.

HEAP_ROWS = 1 << 20  # rows of a pool for which there is one heap
HELD_BYTES = 8 << 20  # that are held until they are written, and given at a time

Rows = NDArray[Any]
Columns = list[tuple[str, str]]  # names and types of what a row has


class Heaps:
    """Structured rows of one type, in `count` heaps of a file, which goes with its closing.

    `rows` are those of the pool: a heap has some HEAP_ROWS of what each row of it gives.
    """

    def __init__(self, rows: int, dtype: Columns) -> None:
        self.count, self.dtype = -(-rows // HEAP_ROWS), np.dtype(dtype)
        self._file = tempfile.TemporaryFile(dir=scratch_folder())  # noqa: SIM115  # see close
        self._held: list[tuple[NDArray[np.int64], Rows]] = []
        self._held_bytes = 0
        self._bounds: list[NDArray[np.int64]] = []  # (H + 1,) rows of the file, of each writing
        self._end = 0

    def add(self, heap_N: NDArray[np.int64], row_N: Rows) -> None:
        """Rows, each to its heap."""
        self._held.append((heap_N, row_N))
        self._held_bytes += row_N.nbytes
        if self._held_bytes >= HELD_BYTES:
            self._write()

    def pieces(self, heap: int) -> Iterator[Rows]:
        """The rows of a heap in the order in which they came, some HELD_BYTES at a time."""
        self._write()
        found: list[Rows] = []
        rows = 0
        for bounds in self._bounds:
            start, stop = bounds[heap : heap + 2].tolist()
            if stop > start:
                self._file.seek(start * self.dtype.itemsize)
                found.append(np.fromfile(self._file, self.dtype, stop - start))
                rows += stop - start
            if rows * self.dtype.itemsize >= HELD_BYTES:
                yield np.concatenate(found)
                found, rows = [], 0
        if found:
            yield np.concatenate(found)

    def of(self, hash_N: NDArray[np.uint64]) -> NDArray[np.int64]:
        """(N,) a heap by hash."""
        return ((hash_N >> np.uint64(32)) % np.uint64(self.count)).astype(np.int64)

    def close(self) -> None:
        self._file.close()

    def _write(self) -> None:
        if not self._held:
            return
        heap_N, row_N = (np.concatenate(them) for them in zip(*self._held, strict=True))
        self._held, self._held_bytes = [], 0
        self._file.seek(0, 2)
        row_N[np.argsort(heap_N, kind="stable")].tofile(self._file)
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
