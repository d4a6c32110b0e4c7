"""The selection alone: DataComp's subset file."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from metadata.schema import IMAGE_BYTES, KEEP, POSITION, REPEATS, SHARD, UID
from metadata.uid import halves
from pipeline.dataset import Context, Inputs, Shards, Task
from pipeline.stage import DatasetStage
from stages.export._groups import REASONS, leaving, put_documents, repeats, summed, tally

# Shapes: N rows.

UIDS = "uids.npy"
RANGE = "range"  # the leading bits of a uid
RANGE_ROWS = 2**21  # about as many uids are sorted at a time
BATCH_ROWS = 2**16  # no images here
DTYPE = np.dtype("u8,u8")


@dataclass(frozen=True, kw_only=True)
class UidList(DatasetStage):
    """uids.npy: the 128-bit ids that leave, sorted, as `u8,u8`; each `repeats` times.

    Takes the rows that `keep` keeps (all, where no select stage stands before), without those
    whose image is missing where images were fetched. No image is read.

    Source: DataComp's subset file and resharder, for which a list is a multiset.
    """

    version = 1
    determinism = "exact"
    gives = "data"
    reads = (UID,)
    optional_reads = (KEEP, IMAGE_BYTES, REPEATS)
    reasons = REASONS

    def run(self, inputs: Inputs, ctx: Context) -> None:
        assert inputs.rows is not None  # the plan gives rows to a stage that takes them
        tallies = ctx.map(partial(tally, inputs.rows, BATCH_ROWS), list(range(len(inputs.rows))))
        counts = summed(tallies)
        bits = max(0, (counts["exported"] - 1) // RANGE_ROWS).bit_length()
        by_range = ctx.shuffle(
            ctx.map_shards(partial(in_ranges, bits), inputs.rows), key=RANGE, partitions=2**bits
        )
        partitions = list(range(len(by_range) if counts["exported"] else 0))
        found = ctx.map(partial(ranges_of, by_range), partitions)
        (file,) = ctx.map(partial(write_uids, by_range, found), [UIDS])
        summary = {
            "name": ctx.worker.stage,
            "format": "uid_list",
            "seed": ctx.worker.seed,
            "counts": counts,
            "columns": [["uid", "u8,u8"]],
            "files": [file],
        }
        ctx.map(put_documents, [summary])


def in_ranges(bits: int, shard: pa.Table) -> pa.Table:
    """The rows that leave, with the range that each uid lies in."""
    leaving_N, _ = leaving(shard)
    rows = shard.filter(pa.array(leaving_N))
    first_N = halves(rows[UID.name])[:, 0]
    range_N = (first_N >> np.uint64(64 - bits) if bits else np.zeros_like(first_N)).astype(np.int32)
    return pa.table(
        {
            **{column.name: rows[column.name] for column in (UID, SHARD, POSITION)},
            REPEATS.name: pa.array(repeats(rows), REPEATS.dtype),
            RANGE: pa.array(range_N),
        }
    )


def ranges_of(by_range: Shards, partition: int, task: Task) -> dict[str, list[int]]:
    """The ranges that lie in a partition, and how many ids each lists."""
    sums = by_range.table(partition).group_by(RANGE).aggregate([(REPEATS.name, "sum")])
    return {"ranges": sums[RANGE].to_pylist(), "ids": sums[f"{REPEATS.name}_sum"].to_pylist()}


def write_uids(
    by_range: Shards, found: Sequence[dict[str, list[int]]], name: str, task: Task
) -> dict[str, Any]:
    """All ranges in their order, each sorted in memory and appended."""
    place = {number: p for p, part in enumerate(found) for number in part["ranges"]}
    total = sum(sum(part["ids"]) for part in found)
    path = task.worker.scratch / name
    with path.open("wb") as file:
        header = {"fortran_order": False, "shape": (total,)}
        header["descr"] = np.lib.format.dtype_to_descr(DTYPE)
        np.lib.format.write_array_header_1_0(file, header)
        for number in sorted(place):
            rows = by_range.table(place[number])
            file.write(sorted_ids(rows.filter(pc.equal(rows[RANGE], number))).tobytes())
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    size_bytes = path.stat().st_size
    task.put_file(path.name, path)
    return {"file": name, "rows": total, "bytes": size_bytes, "sha256": sha256}


def sorted_ids(rows: pa.Table) -> NDArray[np.void]:
    """The ids in rising order, each as often as it repeats."""
    halves_N2 = halves(rows[UID.name])
    halves_N2 = np.repeat(halves_N2, rows[REPEATS.name].to_numpy(), axis=0)
    order_N = np.lexsort((halves_N2[:, 1], halves_N2[:, 0]))
    return np.ascontiguousarray(halves_N2[order_N]).view(DTYPE).reshape(-1)
