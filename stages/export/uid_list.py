"""Exports the uids of a selection, as DataComp's subset file."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.outputs import digest_of
from clipmill.metadata.schema import IDENTITY, REPEATS, UID, Column
from clipmill.metadata.uid import halves
from clipmill.pipeline.dataset import Context, Inputs, Shards, Task
from clipmill.pipeline.stage import DatasetStage, later
from clipmill.stages.export._documents import describe
from clipmill.stages.export._leaving import REASONS, Dropped, Takes, repeats, summed, tally
from clipmill.stages.ops.tables.combined import Gathered
from clipmill.stages.ops.tables.ranges import RANGE, Ranges, bits_for, range_of, ranged

# Shapes: N rows.

UIDS = "uids.npy"
DTYPE = np.dtype("u8,u8")  # as ops.uid_lists reads it
RANGE_ROWS = 2**21  # approximate number of uids sorted at a time
BATCH_ROWS = 2**16  # large, as no images are read
AT_ONCE = 8  # shards that one unit counts, as a unit's result file costs as much as a shard


@dataclass(frozen=True, kw_only=True)
class UidList(DatasetStage):
    """uids.npy: the 128-bit ids of the selection, sorted, as `u8,u8`; each `repeats` times.

    Takes the kept rows (all, without a select stage before); after a download, without rows whose
    image is missing. No image is read.

    Source: DataComp's subset file and resharder, which take a list as a multiset.
    Example: {after: [ingest.image_folder]}
    """

    dropped: Dropped | None = later(None)  # export rows that a stage dropped, not the kept ones

    version = 1
    determinism = "exact"
    formats = ("uid_list",)
    gives = ("data",)
    reasons = REASONS

    @property
    def reads(self) -> tuple[Column | str, ...]:
        return UID, *Takes(dropped=self.dropped).reads

    @property
    def optional_reads(self) -> tuple[Column | tuple[Column, ...], ...]:
        return Takes(dropped=self.dropped).optional_reads

    def run(self, inputs: Inputs, ctx: Context) -> None:
        takes = Takes(dropped=self.dropped)
        shards = len(inputs.rows)
        starts = range(0, shards, AT_ONCE)
        spans = [[start, min(start + AT_ONCE, shards)] for start in starts]
        counts = ctx.map(partial(counted, inputs.rows, takes), spans)
        total = summed(counts, takes)
        bits = bits_for(total["exported"], RANGE_ROWS)
        rows = ctx.map_shards(partial(in_ranges, takes, bits), inputs.rows)
        by_range = ranged(ctx, rows, bits) if bits else Gathered(rows)
        ids = sum(count["samples"] for count in counts)
        (file,) = ctx.map(partial(write_uids, by_range, ids), [UIDS])
        describe(ctx, "uid_list", total, [["uid", "u8,u8"]], [file], **takes.about)


def counted(rows: Shards, takes: Takes, span: list[int], task: Task) -> dict[str, int]:
    """Sums the tallies of neighbouring shards; `span` is the first and the last + 1."""
    tallies = [tally(rows, takes, BATCH_ROWS, shard, task, times=repeats) for shard in range(*span)]
    return summed(tallies, takes) | {"samples": sum(counts["samples"] for counts in tallies)}


def in_ranges(takes: Takes, bits: int, shard: pa.Table) -> pa.Table:
    """Returns the exported rows with the range of each uid."""
    exported_N, _ = takes(shard)
    rows = shard.filter(pa.array(exported_N))
    return pa.table(
        {
            **{name: rows[name] for name in IDENTITY},
            REPEATS.name: pa.array(repeats(rows), REPEATS.dtype),
            RANGE: range_of(rows[UID.name], bits),
        }
    )


def write_uids(by_range: Ranges | Gathered, ids: int, name: str, task: Task) -> dict[str, Any]:
    """Writes all ranges in order, each sorted in memory."""
    path = task.worker.scratch / name
    with path.open("wb") as file:
        header = {"fortran_order": False, "shape": (ids,)}
        header["descr"] = np.lib.format.dtype_to_descr(DTYPE)
        np.lib.format.write_array_header_1_0(file, header)
        for rows in by_range:
            file.write(sorted_ids(rows).tobytes())
    sha256, size_bytes = digest_of(path), path.stat().st_size
    task.put_file(name, path, sha256)
    return {"file": name, "rows": ids, "bytes": size_bytes, "sha256": sha256}


def sorted_ids(rows: pa.Table) -> NDArray[np.void]:
    """Returns the ids in ascending order, each `repeats` times."""
    halves_N2 = halves(rows[UID.name])
    halves_N2 = np.repeat(halves_N2, rows[REPEATS.name].to_numpy(), axis=0)
    order_N = np.argsort(halves_N2[:, 0])  # 8 times as fast as both, and enough for most pools
    high_N = halves_N2[order_N, 0]
    if (high_N[1:] == high_N[:-1]).any():
        order_N = np.lexsort((halves_N2[:, 1], halves_N2[:, 0]))
    return np.ascontiguousarray(halves_N2[order_N]).view(DTYPE).reshape(-1)
