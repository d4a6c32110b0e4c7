"""A select stage in a user's own folder that takes as many rows of every cluster as it can."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import CLUSTER_ID, IDENTITY, KEEP, REASON, REASON_TYPE, UID, Column
from clipmill.metadata.uid import coin_hash
from clipmill.pipeline.dataset import Context, Inputs
from clipmill.pipeline.stage import DatasetStage, Share, Threshold, Verdicts

RANK = Column("evened_rank", pa.int64(), "rows, 0 up", "Place in its cluster by hash.")
QUOTA = Column("evened_quota", pa.int64(), "rows", "That stay of each cluster.")


@dataclass(frozen=True, kw_only=True)
class Evened(DatasetStage):
    """The first rows of each cluster by hash, `fraction` of all; the rank of every row.

    Error: none.
    """

    fraction: Share

    version = 1
    determinism = "exact"
    reads = (CLUSTER_ID,)
    optional_reads = (KEEP,)
    writes = (KEEP, RANK, QUOTA)
    reasons = ("dropped_before", f"undefined:{CLUSTER_ID.name}", "over_quota")

    def run(self, inputs: Inputs, ctx: Context) -> None:
        rows = ctx.shuffle(inputs.rows, key=CLUSTER_ID.name)
        ranked = ctx.map_shards(ranks, rows)
        sizes = ctx.reduce(count_ranks, ranked, merge)
        quota = quota_of(sizes["rows_R"], self.fraction)
        ctx.restore(ctx.map_shards(Judge(self.reasons, quota), ranked))

    def thresholds(self) -> tuple[Threshold, ...]:
        return (
            Threshold(
                name="fraction",
                column=RANK.name,
                sign="<",
                value=self.fraction,
                text=f"fraction = {self.fraction}",
                made=(RANK.name,),
                is_size=True,
            ),
        )

    def verdicts(
        self, threshold: Threshold, values: Sequence[Decimal], rows: pa.Table, made: pa.Table
    ) -> Iterator[Verdicts]:
        rank_N = made[RANK.name].fill_null(-1).to_numpy()
        rows_R = np.bincount(rank_N[rank_N >= 0])
        for value in values:
            if value < Decimal("0.15"):
                raise ValueError(f"fraction is {value}, and nobody keeps so few")
            quota = quota_of(rows_R, float(value))
            keep_N = (rank_N >= 0) & (rank_N < quota)
            yield Verdicts(float(value), f"fraction = {value}", keep_N)

    def explain(self, reason: str, made: Mapping[str, Any]) -> str:
        if made[RANK.name] is None:
            return ""
        return f"it is number {made[RANK.name] + 1} there, and {made[QUOTA.name]} stay"


@dataclass(frozen=True)
class Judge:
    reasons: tuple[str, ...]
    quota: int

    def __call__(self, rows: pa.Table) -> pa.Table:
        rank = rows[RANK.name]
        may = pa.chunked_array([np.ones(len(rows), bool)])
        may = rows[KEEP.name] if KEEP.name in rows.column_names else may
        over = pc.greater_equal(rank, self.quota).fill_null(False)
        broken = (pc.invert(may), rows[CLUSTER_ID.name].is_null(), over)
        reason = pc.case_when(pc.make_struct(*broken), *self.reasons)
        quota = pa.array(np.full(len(rows), self.quota))
        return pa.table(
            {
                **{name: rows[name] for name in IDENTITY},
                KEEP.name: reason.is_null(),
                RANK.name: rank,
                QUOTA.name: quota,
                REASON.name: reason.cast(REASON_TYPE),
            }
        )


def ranks(rows: pa.Table) -> pa.Table:
    cluster_N = rows[CLUSTER_ID.name].fill_null(-1).to_numpy().astype(np.int64)
    if KEEP.name in rows.column_names:
        cluster_N = np.where(rows[KEEP.name].to_numpy(), cluster_N, -1)
    order_N = np.lexsort(
        (coin_hash(rows[UID.name], seed=0, stage="evened", purpose="rank"), cluster_N)
    )
    sorted_N = cluster_N[order_N]
    rank_N = np.empty(len(rows), np.int64)
    rank_N[order_N] = np.arange(len(rows)) - np.searchsorted(sorted_N, sorted_N)
    return rows.append_column(RANK.name, pa.array(rank_N, mask=cluster_N < 0))


def count_ranks(rows: pa.Table) -> dict[str, Any]:
    return {"rows_R": np.bincount(rows[RANK.name].drop_null().to_numpy())}


def merge(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    both = np.zeros(max(len(one["rows_R"]), len(other["rows_R"])), np.int64)
    for of in (one, other):
        both[: len(of["rows_R"])] += of["rows_R"]
    return {"rows_R": both}


def quota_of(rows_R: Any, fraction: float) -> int:
    """The most rows of each cluster that leave no more than the fraction."""
    return int(np.searchsorted(np.cumsum(rows_R), fraction * rows_R.sum(), side="right"))
