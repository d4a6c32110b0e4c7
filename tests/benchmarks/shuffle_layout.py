"""What a shuffle of a pool looks like in storage, by the engine's own arithmetic: nothing is run.

    python -m tests.benchmarks.shuffle_layout

Runs, segments and blocks are those that the engine would cut, of shards of 10,000 rows, for a stage
that declares 2 GB; rows are as wide in storage as in memory (uids don't compress).

Aim: at 128,000 shards and 24 to 36 bytes a row an index below 50 MB, 1 MB a read where neighbouring
partitions are read together (a shuffle of a shuffle, `reduce`), and a driver below 1 GB with three
stages. Where one partition is read alone (`map`, the last step of `restore`) a read is a thirtieth.
Computed (2026-11-27): 128,000 shards: 171 runs, 7.0 MB, 1.05 MB a read at 24 bytes and 1.58 MB at
36, 0.71 GB. 1,280,000: 35 million pieces, 276 MB; with partitions of 250,000 rows there, too, 87
million and 699 MB. The driver is the sum of its measured parts, three quarters of it what a start
holds at most; before records were columns it was 0.90 GB.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from clipmill.pipeline.engine.context import LEAST_PARTITIONS, partition_rows
from clipmill.pipeline.engine.shuffling import runs_of, segment_bytes
from clipmill.pipeline.run_folder.partitions import AHEAD_BYTES, OFFSET, blocks
from tests.benchmarks.side_by_side import begin

SHARD_ROWS, MEMORY_GB = 10_000, 2
SHARDS = (100, 1_000, 10_000, 100_000, 128_000, 1_280_000)
# Measured 2026-11-26 to 28, bytes: a process that has run nothing; what a start holds at most of a
# shard and stage where three are listed; a shard's part of what a dataset stage stores for workers.
DRIVER, OF_SHARD, SENT = 160e6, 1_371, 43


@dataclass(frozen=True)
class Layout:
    """A shuffle of rows by key, in storage."""

    runs: int  # units of work, and files
    segments: int
    partitions: int
    index_bytes: int
    mean_piece: float  # bytes of one partition in one segment: a read of a partition alone
    mean_read: float  # bytes of a read where neighbouring partitions are read together

    @property
    def pieces(self) -> int:
        return self.segments * self.partitions


def layout(rows_S: Sequence[int], row_bytes: int, memory_gb: float = MEMORY_GB) -> Layout:
    """The layout of a pool, from the rows of each shard."""
    runs = runs_of(list(rows_S))
    segments = sum(segments_of(rows_S[a:b], row_bytes, memory_gb) for a, b in runs)
    total = sum(rows_S)
    each = partition_rows(total)
    partitions = max(LEAST_PARTITIONS, ceil(total / each))
    size = total * row_bytes / partitions
    reads = 0
    for start, stop in runs_of([each] * partitions):
        ends_P = np.arange(stop - start + 1)[:, None] * size  # of all segments as one
        reads += len(blocks(ends_P, AHEAD_BYTES)) * segments
    return Layout(
        runs=len(runs),
        segments=segments,
        partitions=partitions,
        index_bytes=(partitions + 1) * (2 + segments) * OFFSET.itemsize,
        mean_piece=size / segments,
        mean_read=total * row_bytes / reads,
    )


def segments_of(rows_S: Sequence[int], row_bytes: int, memory_gb: float) -> int:
    """How many segments a run is cut into."""
    found, held = 1, 0
    for size in (rows * row_bytes for rows in rows_S):
        if held and held + size > segment_bytes(memory_gb):
            found, held = found + 1, 0
        held += size
    return found


def driver_bytes(shards: int, stages: int, made: Layout) -> float:
    """What the driver holds while it makes an index: that of a run of so many stages."""
    return DRIVER + shards * (OF_SHARD * stages + SENT) + 3 * made.index_bytes


def main() -> str:
    print("rows            bytes   runs  partitions   pieces     index  piece alone  read together")
    for shards in SHARDS:
        for row_bytes in (24, 36):
            made = layout([SHARD_ROWS] * shards, row_bytes)
            print(
                f"{shards * SHARD_ROWS:>14,} {row_bytes:>6} {made.runs:>6,} {made.partitions:>11,}"
                f" {made.pieces:>12,} {made.index_bytes / 1e6:>7.1f} MB"
                f" {made.mean_piece / 1e3:>6.0f} kB {made.mean_read / 1e3:>9.0f} kB"
                f"   driver {driver_bytes(shards, 3, made) / 1e9:.2f} GB"
            )
    made = layout([SHARD_ROWS] * 128_000, 24)
    index_mb, read_mb = made.index_bytes / 1e6, made.mean_read / 1e6
    return f"{index_mb:.0f} MB of index for 1.28e9 rows, {read_mb:.2f} MB a read, computed"


if __name__ == "__main__":
    begin(main)
