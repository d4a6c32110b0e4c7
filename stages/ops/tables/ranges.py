"""Reads rows in rising order of their uids, one range in memory at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.uid import halves
from clipmill.pipeline.dataset import Context, Shards, Task

RANGE = "its range"  # the leading bits of a uid; unlike a pool's names


@dataclass(frozen=True)
class Ranges:
    """The rows of each range, ranges in order, rows inside a range in any order. Picklable."""

    shuffled: Shards
    place: dict[int, int]  # the partition of each range that has rows

    def __iter__(self) -> Iterator[pa.Table]:
        for number in sorted(self.place):
            rows = self.shuffled.table(self.place[number])
            yield rows.filter(pc.equal(rows[RANGE], number))


def bits_for(rows: int, rows_per_range: int) -> int:
    """Returns the bits of a range's number, for `rows_per_range` rows at most on average."""
    return max(0, (rows - 1) // rows_per_range).bit_length()


def range_of(uid: pa.ChunkedArray, bits: int) -> pa.Array:
    """Returns (N,) the number of the range of each uid."""
    first_N = halves(uid)[:, 0]
    range_N = first_N >> np.uint64(64 - bits) if bits else np.zeros_like(first_N)
    return pa.array(range_N.astype(np.int32))


def ranged(ctx: Context, rows: Shards, bits: int) -> Ranges:
    """Returns the rows by range; they have the column RANGE."""
    shuffled = ctx.shuffle(rows, RANGE, 2**bits)
    partitions = list(range(len(shuffled) if len(rows) else 0))
    by_partition = ctx.map(partial(ranges_in, shuffled), partitions)
    return Ranges(
        shuffled, {number: p for p, part in enumerate(by_partition) for number in part["ranges"]}
    )


def ranges_in(shuffled: Shards, partition: int, task: Task) -> dict[str, Any]:
    """Returns the ranges whose rows are in one partition."""
    return {"ranges": pc.unique(shuffled.table(partition)[RANGE]).to_pylist()}
