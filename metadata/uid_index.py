"""An index from uid to shard, for roots of many shards: a file for each run of shards.

`uids/000000-<digest>.uids` has eight bytes for each row of up to 1,024 shards: the first 54 bits of
its uid and its shard's number in the run, sorted as one integer. The first integer and the CRC-32
of every block follow, then a CRC-32 of these. A reader reads that end, and the blocks in which a
uid can be.

The name holds a digest of the shards' data files, so an index of other shards is not found. An
index is a copy: if it is missing or torn, the shards themselves are read.
"""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.fingerprint import digest
from clipmill.metadata.storage import Storage
from clipmill.metadata.uid import halves

# Shapes: N rows of the run, B blocks of them, K ranges of a query.

FOLDER = "uids"
SHARD_BITS = 10
MOST_SHARDS = 1 << SHARD_BITS  # of a run
MOST_ROWS = 1 << 24  # of a run, unless one shard has more: 128 MB, sorted in memory
BLOCK_ROWS = 8192
# A root within both gets no index, as reading its shards is as fast.
LEAST_SHARDS = 64
LEAST_ROWS = 2_000_000

Range = tuple[bytes, bytes]  # least and greatest uid
_SHARD = np.uint64(MOST_SHARDS - 1)
_KEY, _CRC = np.dtype("<u8"), np.dtype("<u4")


@dataclass(frozen=True)
class Run:
    """A run of neighbouring shards with one index: their numbers, data files and rows."""

    shards: tuple[int, ...]
    files: tuple[str, ...]
    rows: tuple[int, ...]

    @property
    def name(self) -> str:
        """Returns the name of its index in the root's folder."""
        return f"{FOLDER}/{self.shards[0]:06d}-{digest(self.files)[:16]}.uids"

    @property
    def size_bytes(self) -> int:
        """Returns the size of its index."""
        return sum(self.rows) * _KEY.itemsize + _end_bytes(sum(self.rows))


def runs_of(shards: Iterable[tuple[int, str, int]]) -> list[Run]:
    """Groups shards (number, data file, rows) into runs; none if the root is small."""
    shards = sorted(shards)
    if len(shards) <= LEAST_SHARDS and sum(rows for _, _, rows in shards) <= LEAST_ROWS:
        return []
    runs: list[list[tuple[int, str, int]]] = []
    total = 0
    for shard in shards:
        total += shard[2]
        if not runs or len(runs[-1]) == MOST_SHARDS or total > MOST_ROWS:
            runs.append([])
            total = shard[2]
        runs[-1].append(shard)
    return [Run(*map(tuple, zip(*run, strict=True))) for run in runs]


def put_index(folder: Storage, run: Run, half_N: NDArray[np.uint64]) -> None:
    """Stores a run's index from its uids' first halves, in row order; overwrites `half_N`."""
    half_N &= ~_SHARD
    half_N |= np.repeat(np.arange(len(run.rows), dtype=np.uint64), run.rows)
    half_N.sort()
    key_N = half_N.astype(_KEY, copy=False)
    end = key_N[::BLOCK_ROWS].tobytes() + _crcs(key_N).tobytes()
    with folder.scratch(run.name) as path:
        with path.open("wb") as file:
            key_N.tofile(file)
            file.write(end + _crc(end))
        folder.commit(path, run.name)


def shards_with(folder: Storage, run: Run, ranges: Sequence[Range]) -> list[int]:
    """Returns the shards of a run that may hold uids of the ranges; all, if it has no whole index.

    Uids with equal first 54 bits are not told apart.
    """
    if not sum(run.rows):
        return []
    low_K, high_K = (
        halves(pa.array([each[end] for each in ranges], pa.binary(16)))[:, 0] for end in (0, 1)
    )
    order = np.argsort(low_K)
    low_K = low_K[order] & ~_SHARD
    high_K = np.maximum.accumulate(high_K[order] | _SHARD)  # ranges may be nested
    try:
        key_N = _keys(folder, run, low_K, high_K)
    except OSError:
        return list(run.shards)
    if key_N is None:
        return list(run.shards)
    before_N = np.searchsorted(low_K, key_N, "right")
    hit_N = (before_N > 0) & (key_N <= high_K[before_N - 1])
    return [run.shards[index] for index in np.unique(key_N[hit_N] & _SHARD).tolist()]


def _keys(
    folder: Storage, run: Run, low_K: NDArray[np.uint64], high_K: NDArray[np.uint64]
) -> NDArray[np.uint64] | None:
    """Reads all blocks that may hold an integer between low and high; None if torn."""
    rows = sum(run.rows)
    with folder.open(run.name) as file:
        end = folder.read_opened(file, rows * _KEY.itemsize, _end_bytes(rows))
        if len(end) != _end_bytes(rows) or _crc(end[: -_CRC.itemsize]) != end[-_CRC.itemsize :]:
            return None
        blocks = _blocks(rows)
        first_B = np.frombuffer(end, _KEY, blocks).astype(np.uint64)
        crc_B = np.frombuffer(end, _CRC, blocks, blocks * _KEY.itemsize)
        start_K = np.maximum(np.searchsorted(first_B, low_K) - 1, 0)  # may hold `low` at its end
        stop_K = np.searchsorted(first_B, high_K, "right")
        begun_B = np.searchsorted(start_K, np.arange(blocks), "right")  # ranges begun, by block
        ended_B = np.searchsorted(stop_K, np.arange(blocks), "right")
        ids = np.flatnonzero(begun_B > ended_B)
        keys: list[NDArray[np.uint64]] = [np.empty(0, np.uint64)]
        for span in np.split(ids, np.flatnonzero(np.diff(ids) > 1) + 1) if len(ids) else ():
            first_row = int(span[0]) * BLOCK_ROWS
            count = min(rows - first_row, len(span) * BLOCK_ROWS)
            data = folder.read_opened(file, first_row * _KEY.itemsize, count * _KEY.itemsize)
            key_N = np.frombuffer(data, _KEY, len(data) // _KEY.itemsize)
            if not np.array_equal(_crcs(key_N), crc_B[span]):
                return None
            keys.append(key_N.astype(np.uint64))
    return np.concatenate(keys)


def _blocks(rows: int) -> int:
    return -(-rows // BLOCK_ROWS)


def _end_bytes(rows: int) -> int:
    return _blocks(rows) * (_KEY.itemsize + _CRC.itemsize) + _CRC.itemsize


def _crcs(key_N: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """Returns (B,) the CRC-32 of each block."""
    starts = range(0, len(key_N), BLOCK_ROWS)
    return np.array([zlib.crc32(key_N[row : row + BLOCK_ROWS].tobytes()) for row in starts], _CRC)


def _crc(data: bytes) -> bytes:
    return np.array(zlib.crc32(data), _CRC).tobytes()
