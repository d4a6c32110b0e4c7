"""Density ranks of rows, where those that stay end, and what out/ of select.density tells."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.schema import (
    CENTROID_COSINE,
    CLUSTER_ID,
    POSITION,
    REASON,
    SHARD,
    UID,
    Column,
)
from clipmill.metadata.uid import halves
from clipmill.pipeline.dataset import Context, Shards, State, Task
from clipmill.stages.ops.keeper import in_order
from clipmill.stages.ops.outputs import put_table, put_text
from clipmill.stages.ops.states import joined
from clipmill.stages.select._clustered import (
    CLUSTER_QUOTA,
    CLUSTER_RANK,
    PRUNED,
)
from clipmill.stages.select._judged import judged_rows
from clipmill.stages.select._quotas import UNIT, Quotas, quotas

# Shapes: N rows of a partition, M of them that are ranked, K clusters with rows, T rows at the cut.

DENSITY_RANK = Column(
    "density_rank", pa.float64(), "rows, 0 up", "The least number of rows to keep that keeps it."
)
TABLE, SUMMARY = "density.parquet", "density.json"
Order = Literal["hard", "easy", "hash"]
Coins = Callable[[pa.ChunkedArray], NDArray[np.uint64]]
Places = Callable[["Clusters", pa.Table], tuple[NDArray, NDArray, NDArray]]


@dataclass(frozen=True)
class Clusters:
    """The clusters with rows, by number; each array is (K,)."""

    number: NDArray[np.int64]
    size: NDArray[np.int64]
    intra: NDArray[np.float64]
    inter: NDArray[np.float64]
    share: NDArray[np.int64]  # of the rows wanted, in units of 1 / UNIT
    quotas: Quotas


@dataclass(frozen=True)
class Cut:
    """Where the least density ranks end, so many as are wanted."""

    rank: float  # rows below it stay; of those at it, the first by uid
    ties: NDArray[np.int64] | None  # the places of those of them that stay; None where all do
    kept: NDArray[np.int64]  # (K,)

    @classmethod
    def at(
        cls, asked: int, clusters: Clusters, places: Places, rows: Shards, ctx: Context
    ) -> "Cut":
        """Found from the quotas alone; only where ranks tie at the cut do the rows tell."""
        size_K = clusters.size
        if asked == 0 or not len(size_K):
            return cls(-np.inf, None, np.zeros_like(size_K))
        low, high = 0.0, float(size_K.sum())
        while (middle := low + (high - low) / 2) not in (low, high):
            kept_K = np.floor(clusters.quotas.at(middle) + 0.5)
            low, high = (middle, high) if kept_K.sum() < asked else (low, middle)
        # The rows next to each cluster's border: rounding moves no rank past two of them.
        near_K = np.floor(clusters.quotas.at(high) + 0.5).astype(np.int64)
        below_K = np.maximum(near_K - 2, 0)
        span_K = np.minimum(near_K + 2, size_K) - below_K
        cluster_M = np.repeat(np.arange(len(size_K)), span_K)
        rank_M = np.arange(len(cluster_M)) - np.repeat(np.cumsum(span_K) - span_K, span_K)
        enters_M = clusters.quotas.enters(cluster_M, rank_M + below_K[cluster_M] + 1)
        rank = float(np.sort(enters_M)[asked - int(below_K.sum()) - 1])
        below_K = below_K + np.bincount(cluster_M[enters_M < rank], minlength=len(size_K))
        level_K = np.bincount(cluster_M[enters_M == rank], minlength=len(size_K))
        if below_K.sum() + level_K.sum() == asked:
            return cls(rank, None, below_K + level_K)
        level = ctx.reduce(partial(at_rank, rank, clusters, places), rows, joined)
        order_T = np.lexsort((level["position"], level["shard"], *level["uid"].T[::-1]))
        stays_T = order_T[: asked - int(below_K.sum())]
        kept_K = below_K + np.bincount(level["cluster"][stays_T], minlength=len(size_K))
        return cls(rank, np.sort(place_key(level["shard"], level["position"])[stays_T]), kept_K)

    def keeps(self, rank_M: NDArray[np.float64], partition: pa.Table) -> NDArray[np.bool_]:
        """(M,) whether each of the rows stays."""
        if self.ties is None:
            return rank_M <= self.rank
        key_M = place_key(partition[SHARD.name].to_numpy(), partition[POSITION.name].to_numpy())
        return (rank_M < self.rank) | (rank_M == self.rank) & np.isin(key_M, self.ties)


def place_key(shard_N: NDArray, position_N: NDArray) -> NDArray[np.int64]:
    """(N,) a row's place in the pool as one number."""
    return shard_N.astype(np.int64) << 32 | position_N.astype(np.int64)


def placed(
    order: Order, coins: Coins, clusters: Clusters, partition: pa.Table
) -> tuple[NDArray, NDArray, NDArray]:
    """Of the ranked rows: their numbers in the partition, index of the cluster, and rank in it."""
    row_M = np.flatnonzero(partition[CLUSTER_ID.name].is_valid().to_numpy())
    ranked = partition.take(row_M)
    cluster_M = np.searchsorted(clusters.number, ranked[CLUSTER_ID.name].to_numpy())
    cosine_M = ranked[CENTROID_COSINE.name].to_numpy()
    key_M = (
        coins(ranked[UID.name]) if order == "hash" else cosine_M if order == "hard" else -cosine_M
    )
    order_M = in_order(ranked, cluster_M, key_M)
    row_M, cluster_M = row_M[order_M], cluster_M[order_M]
    first_M = np.searchsorted(cluster_M, cluster_M)
    return row_M, cluster_M, np.arange(len(row_M)) - first_M + 1


def at_rank(rank: float, clusters: Clusters, places: Places, partition: pa.Table) -> State:
    """The rows whose density rank is just this."""
    row_M, cluster_M, rank_M = places(clusters, partition)
    level_M = clusters.quotas.enters(cluster_M, rank_M) == rank
    rows = partition.take(row_M[level_M])
    return {
        "cluster": cluster_M[level_M],
        "uid": halves(rows[UID.name]),
        **{name: rows[name].to_numpy() for name in (SHARD.name, POSITION.name)},
    }


def judged(clusters: Clusters, cut: Cut, places: Places, partition: pa.Table) -> pa.Table:
    """keep, ranks, quota and reason of every row."""
    row_M, cluster_M, rank_M = places(clusters, partition)
    density_M = clusters.quotas.enters(cluster_M, rank_M)
    keep_N = np.zeros(len(partition), bool)
    keep_N[row_M] = cut.keeps(density_M, partition.take(row_M))
    at_N = np.zeros(len(partition), np.int64)  # of a row among those that are ranked
    at_N[row_M] = np.arange(len(row_M))
    out_N = np.ones(len(partition), bool)
    out_N[row_M] = False
    at = pa.array(at_N, mask=out_N)
    values = {
        DENSITY_RANK: density_M,
        CLUSTER_RANK: rank_M,
        CLUSTER_QUOTA: cut.kept[cluster_M],
    }
    made = {c.name: pa.array(value_M).cast(c.dtype).take(at) for c, value_M in values.items()}
    pruned = pc.if_else(pa.array(keep_N), None, PRUNED)
    return judged_rows(partition, pc.coalesce(partition[REASON.name], pruned), made)


def put_tables(
    clusters: Clusters, cut: Cut, balance: float, item: dict[str, int], task: Task
) -> dict[str, Any]:
    """out/density.parquet: a row a cluster. out/density.json: rows asked for, kept, and ranked."""
    asked, found = item["asked"], clusters.quotas
    least_K = np.minimum(found.share * asked, found.cap)
    share_K = clusters.share / UNIT
    quota_K = quotas(asked * share_K, least_K, found.size, asked)
    table = pa.table(
        {
            CLUSTER_ID.name: pa.array(clusters.number, CLUSTER_ID.dtype),
            "rows": clusters.size,
            "d_intra": clusters.intra,
            "d_inter": pa.array(clusters.inter, mask=np.isnan(clusters.inter)),
            "complexity": clusters.intra * clusters.inter,
            "probability": share_K,
            "quota": quota_K,
            "quota_rows": np.floor(quota_K + 0.5).astype(np.int64),
            "kept": cut.kept,
        }
    )
    kept = int(cut.kept.sum())
    summary = {
        "asked": asked,
        "kept": kept,
        "ranked": int(clusters.size.sum()),
        "clusters": len(table),
        "furthest_from_quota": float(np.abs(cut.kept - quota_K).max(initial=0)),
    }
    put_table(TABLE, table, task)
    put_text(SUMMARY, json.dumps(summary), task)
    return summary
