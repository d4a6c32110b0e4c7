"""Which rows a list names, and how often: a subset that somebody else has chosen."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import (
    IDENTITY,
    IMAGE_BYTES,
    KEEP,
    POSITION,
    REASON,
    REPEATS,
    SHARD,
    UID,
)
from clipmill.metadata.uid import from_halves, halves
from clipmill.pipeline.dataset import Context, Inputs, State, Task
from clipmill.pipeline.stage import DatasetStage, NonEmpty
from clipmill.stages.ops.outside import listing_digest
from clipmill.stages.ops.tables.rows import DROPPED, put_text
from clipmill.stages.select._judged import NO_IMAGE, first_of, judged_rows, left_out

if TYPE_CHECKING:
    import polars as pl

# Shapes: N rows of the pool.

FILE = "list.json"
SHOWN = 10  # uids that no row has
MET = pa.schema(
    [
        *((column.name, column.dtype) for column in (UID, SHARD, POSITION)),
        (REASON.name, pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class UidList(DatasetStage):
    """Whether the list names a row, and how often: `repeats`, null where the row does not stay.

    The list is DataComp's subset file (.npy of `u8,u8`), or text of one uid a line, 32 hex digits,
    in any order. A uid that stands k times has `repeats` k, which exports heed. out/list.json tells
    how many uids were listed and how many of them no row has, with the least of these.

    Source: DataComp's subset file and its resharder, for which a list is a multiset.
    Error: none. Rows that share a uid stay or go together.
    Example: {after: [ingest.image_folder], path: kept.npy}
    """

    path: NonEmpty  # of the list: .npy of `u8,u8`, or a text of one uid a line

    version = 1
    determinism = "exact"
    optional_reads = (KEEP, IMAGE_BYTES)
    writes = (KEEP, REPEATS)
    reasons = (DROPPED, NO_IMAGE, "not_listed")
    artifacts = (("listed", FILE),)

    def outside(self) -> str:
        """The time and size of the list's file."""
        return listing_digest(self.path)

    def look(self) -> None:
        from clipmill.stages.ops.tables.uid_lists import opened

        opened(self.path, "key `path`")

    def run(self, inputs: Inputs, ctx: Context) -> None:
        from clipmill.stages.ops.tables.combined import Concatenated, Zipped
        from clipmill.stages.ops.tables.uid_lists import opened

        listed = opened(self.path, f"stage '{ctx.worker.stage}', key `path`")
        both = Concatenated((ctx.map_shards(may_stay, inputs.rows), Zipped(lines, (listed,))))
        partitions = ctx.partitions(inputs.rows, listed.uids)
        met = ctx.shuffle(both, UID.name, partitions)  # a row, and the lines that name it
        ctx.map(put, [summary(ctx.reduce(counted, met, merged))])
        ctx.restore(ctx.map_shards(judged, met))


def may_stay(shard: pa.Table) -> pa.Table:
    """Who the rows are, and why they stay out whatever is listed."""
    reason = first_of(left_out(shard))
    return pa.table([*shard.select(IDENTITY).columns, reason], schema=MET)


def lines(uids: pa.Table) -> pa.Table:
    """The listed uids, as rows without a place."""
    nothing = [pa.nulls(len(uids), field.type) for field in MET][1:]
    return pa.table([uids[UID.name], *nothing], schema=MET)


def judged(met: pa.Table) -> pa.Table:
    """keep, repeats and reason of every row, by the lines that it met."""
    rows, listed = apart(met)
    times = rows.join(listed, on=UID.name, how="left", maintain_order="left")[REPEATS.name]
    times_N = times.fill_null(0).to_numpy()
    own = met.filter(met[SHARD.name].is_valid())
    unlisted = pc.if_else(pa.array(times_N == 0), UidList.reasons[-1], None)
    reason = pc.coalesce(own[REASON.name], unlisted)
    repeats = pc.if_else(reason.is_null(), pa.array(times_N, REPEATS.dtype), None)
    return judged_rows(own, reason, {REPEATS.name: repeats})


def counted(met: pa.Table) -> State:
    """Lines, the uids in them, those that no row has, and the least of these."""
    rows, listed = apart(met)
    missing = listed.join(rows, on=UID.name, how="anti").sort(UID.name)
    least = missing[UID.name].head(SHOWN).to_arrow().cast(pa.binary()).cast(UID.dtype)
    numbers = listed[REPEATS.name].sum(), len(listed), len(missing)
    return {"numbers": np.array(numbers, np.int64), "least": halves(least)}


def apart(met: pa.Table) -> tuple["pl.DataFrame", "pl.DataFrame"]:
    """The pool's rows; and the listed uids, each once with its number of lines."""
    import polars as pl

    both = pl.DataFrame(met.select([UID.name, SHARD.name]))
    is_line = pl.col(SHARD.name).is_null()
    listed = both.filter(is_line).group_by(UID.name).len(REPEATS.name)
    return both.filter(~is_line), listed


def merged(one: State, other: State) -> State:
    least = np.unique(np.concatenate([one["least"], other["least"]]), axis=0)[:SHOWN]
    return {"numbers": np.add(one["numbers"], other["numbers"]), "least": least}


def summary(counts: State) -> dict[str, Any]:
    """What out/list.json holds."""
    names = ("listed", "uids", "missing")
    least = from_halves(counts["least"].astype(np.uint64)).to_pylist()
    return {
        **dict(zip(names, counts["numbers"].tolist(), strict=True)),
        "least_missing": [uid.hex() for uid in least],
    }


def put(listed: dict[str, Any], task: Task) -> dict[str, Any]:
    """Stores out/list.json."""
    put_text(FILE, json.dumps(listed, indent=1) + "\n", task)
    return {"missing": listed["missing"]}
