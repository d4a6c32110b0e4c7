"""Keeps the rows that a list of uids names: a subset chosen elsewhere."""

from dataclasses import dataclass
from functools import partial
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
from clipmill.pipeline.dataset import Context, Inputs, State
from clipmill.pipeline.stage import DatasetStage, NonEmpty
from clipmill.stages.ops.outside import listing_digest
from clipmill.stages.ops.tables.rows import DROPPED, put_json
from clipmill.stages.select._judged import NO_IMAGE, first_of, judged_rows, left_out

if TYPE_CHECKING:
    import polars as pl

# Shapes: N rows of the pool.

FILE = "list.json"
SHOWN = 10  # most missing uids in out/list.json
MET = pa.schema(
    [
        *((column.name, column.dtype) for column in (UID, SHARD, POSITION)),
        (REASON.name, pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class UidList(DatasetStage):
    """Keep decision of each row by a list, and `repeats`, how often it is listed; null if dropped.

    The list is DataComp's subset file (.npy of `u8,u8`), or text of one uid a line, 32 hex digits,
    in any order. A uid listed k times has `repeats` k, which exports obey. out/list.json gives the
    number of listed uids and of uids that no row has, with the least of these.

    Source: DataComp's subset file and its resharder, for which a list is a multiset.
    Error: none. Rows that share a uid stay or go together.
    Example: {after: [ingest.image_folder], path: kept.npy}
    """

    path: NonEmpty  # file of the list: .npy of `u8,u8`, or a text of one uid a line

    version = 1
    determinism = "exact"
    optional_reads = (KEEP, IMAGE_BYTES)
    writes = (KEEP, REPEATS)
    reasons = (DROPPED, NO_IMAGE, "not_listed")
    artifacts = (("listed", FILE),)

    def outside(self) -> str:
        """Returns the time and size of the list's file."""
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
        ctx.map(partial(put_json, FILE), [summary(ctx.reduce(counted, met, merged))])
        ctx.restore(ctx.map_shards(judged, met))


def may_stay(shard: pa.Table) -> pa.Table:
    """Returns the rows' identity, and the reason why they are dropped even if listed."""
    reason = first_of(left_out(shard))
    return pa.table([*shard.select(IDENTITY).columns, reason], schema=MET)


def lines(uids: pa.Table) -> pa.Table:
    """Returns the listed uids, as rows without a place."""
    nothing = [pa.nulls(len(uids), field.type) for field in MET][1:]
    return pa.table([uids[UID.name], *nothing], schema=MET)


def judged(met: pa.Table) -> pa.Table:
    """Returns keep, repeats and reason of every row, by the lines that name it."""
    rows, listed = apart(met)
    times = rows.join(listed, on=UID.name, how="left", maintain_order="left")[REPEATS.name]
    times_N = times.fill_null(0).to_numpy()
    pool_rows = met.filter(met[SHARD.name].is_valid())
    unlisted = pc.if_else(pa.array(times_N == 0), UidList.reasons[-1], None)
    reason = pc.coalesce(pool_rows[REASON.name], unlisted)
    repeats = pc.if_else(reason.is_null(), pa.array(times_N, REPEATS.dtype), None)
    return judged_rows(pool_rows, reason, {REPEATS.name: repeats})


def counted(met: pa.Table) -> State:
    """Counts lines, their distinct uids and the uids that no row has; adds the least of these."""
    rows, listed = apart(met)
    missing = listed.join(rows, on=UID.name, how="anti").sort(UID.name)
    least = missing[UID.name].head(SHOWN).to_arrow().cast(pa.binary()).cast(UID.dtype)
    numbers = listed[REPEATS.name].sum(), len(listed), len(missing)
    return {"numbers": np.array(numbers, np.int64), "least": halves(least)}


def apart(met: pa.Table) -> tuple["pl.DataFrame", "pl.DataFrame"]:
    """Returns the pool's rows; and the listed uids, each once with its number of lines."""
    import polars as pl

    both = pl.DataFrame(met.select([UID.name, SHARD.name]))
    is_line = pl.col(SHARD.name).is_null()
    listed = both.filter(is_line).group_by(UID.name).len(REPEATS.name)
    return both.filter(~is_line), listed


def merged(left: State, right: State) -> State:
    least = np.unique(np.concatenate([left["least"], right["least"]]), axis=0)[:SHOWN]
    return {"numbers": np.add(left["numbers"], right["numbers"]), "least": least}


def summary(counts: State) -> dict[str, Any]:
    """Returns the content of out/list.json."""
    names = ("listed", "uids", "missing")
    least = from_halves(counts["least"].astype(np.uint64)).to_pylist()
    return {
        **dict(zip(names, counts["numbers"].tolist(), strict=True)),
        "least_missing": [uid.hex() for uid in least],
    }
