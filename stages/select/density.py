"""Prunes clusters by density: keeps more rows of wide, distant clusters, fewer of dense ones."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Meta
from numpy.typing import NDArray

from clipmill.metadata.schema import (
    CENTROID_COSINE,
    CLUSTER_ID,
    IMAGE_BYTES,
    KEEP,
    POSITION,
    REASON,
    SHARD,
    UID,
    Column,
)
from clipmill.metadata.uid import coin_hash, halves
from clipmill.pipeline.dataset import Context, Inputs, Shards, State, Task
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.stage import NonEmpty, OneUp, Parts, Threshold, Verdicts
from clipmill.stages.ops.outside import listing_digest
from clipmill.stages.ops.tables.rows import in_order, joined, put_table, put_text
from clipmill.stages.ops.vectors.centroids import look_for, read
from clipmill.stages.ops.vectors.matrices import unit_rows
from clipmill.stages.select._clustered import (
    CLUSTER_QUOTA,
    CLUSTER_RANK,
    PRUNED,
    REASONS,
    Balance,
    SizedSelect,
    population,
    refuse_strangers,
    size_of,
)
from clipmill.stages.select._judged import judged_rows
from clipmill.stages.select._least import at_each, least_of_parts, verdict
from clipmill.stages.select._quotas import Quotas, probabilities

# Shapes: K clusters with rows; N rows of a partition, M of them that are ranked, T rows at the
# cut; K centroids, D width of a vector, B centroids of a block, P pairs of near centroids.

DENSITY_RANK = Column(
    "density_rank", pa.float64(), "rows, 0 up", "The least number of rows to keep that keeps it."
)
Order = Literal["hard", "easy", "hash"]
FIXED = 2.0**30  # a distance in fixed point: sums over 2^32 rows fit into 64 bits, in any order


@dataclass(frozen=True)
class Clusters:
    """The clusters with rows, by number; each array is (K,)."""

    number: NDArray[np.int64]
    size: NDArray[np.int64]
    intra: NDArray[np.float64]
    inter: NDArray[np.float64]
    quotas: Quotas


@dataclass(frozen=True, kw_only=True)
class Density(SizedSelect):
    """Keep decision and `density_rank` (the size from which a row stays); null without cluster.

    A cluster's complexity is the mean 1 - cosine of its rows to its centroid, times the mean 1 -
    cosine of its centroid to the nearest others; a softmax makes shares of it. Its quota is clip(N
    * share + level, least, size), with one level for all so that quotas sum to N. Row r of its
    order enters at the least N whose quota is r - 1/2 or more: `density_rank <= N` keeps the
    rounded quotas of every N, and a larger N keeps all rows of a smaller one. `rows` and `fraction`
    (of the ranked rows, rounded down) keep exactly that many, the least ranks, ties to the smaller
    uid. Ranked are rows with a cluster that no earlier select dropped and whose image did not fail.
    out/density.parquet has one row per cluster, out/density.json the sizes.

    Source: Density-Based Pruning (Abbas et al. 2024) and its released code. Departs: the least
    quota is the real balance * N / clusters, which the code rounds down: then subsets do not nest.
    Only clusters with rows count. Quotas are exact, where the code's solver stops near them.
    Error: distances in fixed point, 2^-31, shares 2^-45; the rows kept of a cluster differ from its
    real quota by 1/2 at `density_rank <= N`, mostly by less than 1 at `rows`: docs/clusters.md.
    Example: {after: [ingest.image_folder, embed.clip, cluster.kmeans],
      centroids: "stage:kmeans", fraction: 0.3}
    """

    centroids: NonEmpty  # centroids of the clusters: "stage:NAME", or a Parquet
    # temperature of the softmax: the paper's 0.1; at the released code's 0.5, a complexity greater
    # by 0.05 makes a share greater by a tenth only
    tau: Annotated[float, Meta(gt=0)] = 0.1
    # least quota of a cluster, as a fraction of an even share; 0: one row, as released
    balance: Balance = 0.5
    neighbours: OneUp = 20  # nearest centroids to average a cluster's distance to others over
    # which rows of a cluster come first: far from its centroid (hard), near it, or by hash
    order: Order = "hard"

    version = 1
    rank = DENSITY_RANK.name
    takes = ("rows", "centroids")
    reads = (CLUSTER_ID, CENTROID_COSINE)
    optional_reads = (KEEP, IMAGE_BYTES)
    writes = (KEEP, DENSITY_RANK, CLUSTER_RANK, CLUSTER_QUOTA)
    reasons = REASONS

    def look(self) -> None:
        look_for(self.centroids)

    def outside(self) -> str:
        """Returns the time and size of the centroids' file, if the setting names one."""
        return listing_digest(self.centroids)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        coins = partial(coin_hash, seed=ctx.worker.seed, stage=ctx.worker.stage, purpose="order")
        places = partial(placed, self.order, coins)
        ctx.say("sorting rows by cluster")
        rows = ctx.shuffle(ctx.map_shards(population, inputs.rows), "key")
        if not len(rows):
            ctx.restore(rows)
            return
        clusters = self.clusters(inputs, rows, ctx)
        size = self.rows_to_keep(int(clusters.size.sum()), ctx.worker.stage)
        ctx.say("cutting at the size")
        cut = Cut.at(size, clusters, places, rows, ctx)
        ctx.map(partial(put_tables, clusters, cut), [size])
        ctx.say("")
        ctx.restore(ctx.map_shards(partial(judged, clusters, cut, places), rows))

    def verdicts(
        self, threshold: Threshold, values: Sequence[Decimal], rows: pa.Table, made: pa.Table
    ) -> Iterator[Verdicts]:
        """Returns the rows of least rank at each size, ties by uid; ValueError if impossible."""
        rank = made[threshold.column]
        sizes = (size_of(threshold.name, value, len(rank) - rank.null_count) for value in values)
        return map(partial(verdict, threshold), values, at_each(sizes, rows, rank))

    def surveyed(
        self, threshold: Threshold, values: Sequence[Decimal], parts: Parts
    ) -> Callable[[pa.Table, pa.Table], Iterator[Verdicts]]:
        """Returns a function that yields a part's verdicts at each size, counted over all parts."""
        sizes = [partial(size_of, threshold.name, value) for value in values]
        return least_of_parts(threshold, values, sizes, parts)

    def clusters(self, inputs: Inputs, rows: Shards, ctx: Context) -> Clusters:
        """Returns the clusters with rows and their quotas."""
        where = f"stage '{ctx.worker.stage}'"
        count = len(read(inputs.centroids, self.centroids, where))
        sums = ctx.reduce(partial(sizes, where), rows, joined)
        order_K = np.argsort(sums["cluster_K"])
        number_K, size_K, apart_K = (
            sums[name][order_K].astype(np.int64) for name in ("cluster_K", "size_K", "apart_K")
        )
        refuse_strangers(number_K, count, where)
        ctx.say("comparing centroids")
        inter_K = isolation(inputs.centroids, self.centroids, self.neighbours, count, ctx)[number_K]
        intra_K = np.maximum(apart_K / FIXED / size_K, 0)
        quotas_K = Quotas.of(probabilities(inter_K * intra_K, self.tau), size_K, self.balance)
        return Clusters(number_K, size_K, intra_K, inter_K, quotas_K)


TABLE, SUMMARY = "density.parquet", "density.json"
Coins = Callable[[pa.ChunkedArray], NDArray[np.uint64]]
Places = Callable[["Clusters", pa.Table], tuple[NDArray, NDArray, NDArray]]


@dataclass(frozen=True)
class Cut:
    """The end of the least density ranks, for a number of rows to keep."""

    rank: float  # rows below it stay; of those at it, the first by uid
    ties: NDArray[np.int64] | None  # places of the rows at it that stay; None if all do
    kept: NDArray[np.int64]  # (K,)

    @classmethod
    def at(cls, size: int, clusters: Clusters, places: Places, rows: Shards, ctx: Context) -> "Cut":
        """Finds the cut from the quotas alone; reads rows only if ranks tie at the cut."""
        size_K = clusters.size
        if size == 0 or not len(size_K):
            return cls(-np.inf, None, np.zeros_like(size_K))
        low, high = 0.0, float(size_K.sum())
        while (middle := low + (high - low) / 2) not in (low, high):
            kept_K = np.floor(clusters.quotas.at(middle) + 0.5)
            low, high = (middle, high) if kept_K.sum() < size else (low, middle)
        # The rows next to each cluster's border: rounding moves no rank past two of them.
        near_K = np.floor(clusters.quotas.at(high) + 0.5).astype(np.int64)
        below_K = np.maximum(near_K - 2, 0)
        span_K = np.minimum(near_K + 2, size_K) - below_K
        cluster_M = np.repeat(np.arange(len(size_K)), span_K)
        rank_M = np.arange(len(cluster_M)) - np.repeat(np.cumsum(span_K) - span_K, span_K)
        enters_M = clusters.quotas.enters(cluster_M, rank_M + below_K[cluster_M] + 1)
        rank = float(np.sort(enters_M)[size - int(below_K.sum()) - 1])
        below_K = below_K + np.bincount(cluster_M[enters_M < rank], minlength=len(size_K))
        level_K = np.bincount(cluster_M[enters_M == rank], minlength=len(size_K))
        if below_K.sum() + level_K.sum() == size:
            return cls(rank, None, below_K + level_K)
        level = ctx.reduce(partial(at_rank, rank, clusters, places), rows, joined)
        order_T = np.lexsort((level["position"], level["shard"], *level["uid"].T[::-1]))
        stays_T = order_T[: size - int(below_K.sum())]
        kept_K = below_K + np.bincount(level["cluster"][stays_T], minlength=len(size_K))
        return cls(rank, np.sort(place_key(level["shard"], level["position"])[stays_T]), kept_K)

    def keeps(self, rank_M: NDArray[np.float64], partition: pa.Table) -> NDArray[np.bool_]:
        """Returns (M,) whether each of the rows stays."""
        if self.ties is None:
            return rank_M <= self.rank
        key_M = place_key(partition[SHARD.name].to_numpy(), partition[POSITION.name].to_numpy())
        return (rank_M < self.rank) | (rank_M == self.rank) & np.isin(key_M, self.ties)


def place_key(shard_N: NDArray, position_N: NDArray) -> NDArray[np.int64]:
    """Returns (N,) a row's place in the pool as one number."""
    return shard_N.astype(np.int64) << 32 | position_N.astype(np.int64)


def placed(
    order: Order, coins: Coins, clusters: Clusters, partition: pa.Table
) -> tuple[NDArray, NDArray, NDArray]:
    """Returns the ranked rows: index in the partition, index of the cluster, and rank in it."""
    row_M = np.flatnonzero(partition[CLUSTER_ID.name].is_valid().to_numpy())
    ranked = partition.take(row_M)
    cluster_M = np.searchsorted(clusters.number, ranked[CLUSTER_ID.name].to_numpy())
    cosine_M = ranked[CENTROID_COSINE.name].to_numpy()
    key_M = coins(ranked[UID.name]) if order == "hash" else cosine_M
    key_M = -cosine_M if order == "easy" else key_M
    order_M = in_order(ranked, cluster_M, key_M)
    row_M, cluster_M = row_M[order_M], cluster_M[order_M]
    first_M = np.searchsorted(cluster_M, cluster_M)
    return row_M, cluster_M, np.arange(len(row_M)) - first_M + 1


def at_rank(rank: float, clusters: Clusters, places: Places, partition: pa.Table) -> State:
    """Returns the rows whose density rank is exactly `rank`."""
    row_M, cluster_M, rank_M = places(clusters, partition)
    level_M = clusters.quotas.enters(cluster_M, rank_M) == rank
    rows = partition.take(row_M[level_M])
    return {
        "cluster": cluster_M[level_M],
        "uid": halves(rows[UID.name]),
        **{name: rows[name].to_numpy() for name in (SHARD.name, POSITION.name)},
    }


def judged(clusters: Clusters, cut: Cut, places: Places, partition: pa.Table) -> pa.Table:
    """Returns keep, ranks, quota and reason of every row."""
    row_M, cluster_M, rank_M = places(clusters, partition)
    density_M = clusters.quotas.enters(cluster_M, rank_M)
    keep_N = np.zeros(len(partition), bool)
    keep_N[row_M] = cut.keeps(density_M, partition.take(row_M))
    index_N = np.full(len(partition), -1)  # index among the ranked rows
    index_N[row_M] = np.arange(len(row_M))
    index = pa.array(index_N, mask=index_N < 0)
    values = {DENSITY_RANK: density_M, CLUSTER_RANK: rank_M, CLUSTER_QUOTA: cut.kept[cluster_M]}
    made = {c.name: pa.array(value_M).cast(c.dtype).take(index) for c, value_M in values.items()}
    pruned = pc.if_else(pa.array(keep_N), None, PRUNED)
    return judged_rows(partition, pc.coalesce(partition[REASON.name], pruned), made)


def put_tables(clusters: Clusters, cut: Cut, size: int, task: Task) -> dict[str, Any]:
    """Stores out/density.parquet (one row per cluster) and out/density.json (sizes)."""
    quota_K = clusters.quotas.at(size)
    table = pa.table(
        {
            CLUSTER_ID.name: pa.array(clusters.number, CLUSTER_ID.dtype),
            "rows": clusters.size,
            "d_intra": clusters.intra,
            "d_inter": pa.array(clusters.inter, mask=np.isnan(clusters.inter)),
            "complexity": clusters.intra * clusters.inter,
            "probability": clusters.quotas.probability,
            "quota": quota_K,
            "quota_rows": np.floor(quota_K + 0.5).astype(np.int64),
            "kept": cut.kept,
        }
    )
    summary = {
        "asked": size,
        "kept": int(cut.kept.sum()),
        "ranked": int(clusters.size.sum()),
        "clusters": len(table),
        "furthest_from_quota": float(np.abs(cut.kept - quota_K).max(initial=0)),
    }
    put_table(TABLE, table, task)
    put_text(SUMMARY, json.dumps(summary), task)
    return summary


SCORES = 2**23  # (B, K) float32 products held at a time: 32 MB
PAIRS = 2**12  # products in float64 at a time: 50 MB at D = 768
BLOCKS = 256  # calls at most: each reads the centroids once


def sizes(where: str, partition: pa.Table) -> State:
    """Counts the rows of each cluster and sums their distances, 1 - cosine, in fixed point."""
    ranked = partition.filter(partition[CLUSTER_ID.name].is_valid())
    cluster_K, index_N = np.unique(ranked[CLUSTER_ID.name].to_numpy(), return_inverse=True)
    cosine_N = ranked[CENTROID_COSINE.name].to_numpy().astype(np.float64)
    if len(odd := cosine_N[np.abs(cosine_N) > 1.01]):
        do = "read a column of cosines, which lie between -1 and 1"
        raise StageError(f"a cosine of {odd[0]:g}", f"{where}, `{CENTROID_COSINE.name}`", do)
    apart_N = np.rint((1 - cosine_N) * FIXED)
    apart_K = np.zeros(len(cluster_K), np.int64)
    np.add.at(apart_K, index_N, apart_N.astype(np.int64))
    return {"cluster_K": cluster_K, "size_K": np.bincount(index_N), "apart_K": apart_K}


def isolation(
    folder: str | None, setting: str, neighbours: int, clusters: int, ctx: Context
) -> NDArray[np.float64]:
    """Returns (K,) mean 1 - cosine to the nearest other centroids, 0 to 2; NaN if there is none.

    Costs K * K products of width D, in blocks over the workers, each of which holds all centroids.
    """
    size = max(256, -(-clusters // BLOCKS))
    blocks = [[start, min(start + size, clusters)] for start in range(0, clusters, size)]
    where = f"stage '{ctx.worker.stage}'"
    results = ctx.map(partial(of_block, folder, setting, where, neighbours), blocks)
    whole = [value for block in results for value in block["isolation"]]
    return np.array([np.nan if value is None else value / FIXED for value in whole])


def of_block(
    folder: str | None, setting: str, where: str, neighbours: int, block: list[int], task: Task
) -> dict[str, Any]:
    """Returns the isolation of a block of centroids, in fixed point; None if undefined."""
    unit_KD = unit_rows(read(folder, setting, where).vector)
    step = max(1, SCORES // len(unit_KD))
    values: list[int | None] = []
    first, end = block
    for start in range(first, end, step):
        stop = min(start + step, end)
        value_B = mean_distance(unit_KD, start, stop, neighbours)
        values += [None if np.isnan(v) else int(np.rint(v * FIXED)) for v in value_B]
        task.worker.tell(stop - first, end - first, "centroids")
    return {"isolation": values}


def mean_distance(
    unit_KD: NDArray[np.float32], start: int, stop: int, neighbours: int
) -> NDArray[np.float64]:
    """Returns (B,) the isolation of a block; float32 rules out far centroids, float64 decides."""
    none_K = np.isnan(unit_KD[:, 0])  # of a centroid without a direction
    near = min(neighbours, int((~none_K).sum()) - 1)
    value_B = np.full(stop - start, np.nan)
    row_B = np.flatnonzero(~none_K[start:stop])
    if near < 1 or not len(row_B):
        return value_B
    K, D = unit_KD.shape
    score_BK = unit_KD[start + row_B] @ unit_KD.T
    score_BK[:, none_K] = -np.inf  # NaN until here
    score_BK[np.arange(len(row_B)), start + row_B] = -np.inf  # itself
    gap = np.float32(2 * 1.01 * D * 2.0**-24)  # what rounding can hide, as in _coarse.py
    last_B = np.partition(score_BK, K - near, axis=1)[:, K - near]
    row_P, other_P = np.nonzero(score_BK >= (last_B - gap)[:, None])
    cosine_P = np.empty(len(row_P))
    for begin in range(0, len(row_P), PAIRS):
        pair = slice(begin, begin + PAIRS)
        left_PD = unit_KD[start + row_B[row_P[pair]]].astype(np.float64)
        cosine_P[pair] = np.vecdot(left_PD, unit_KD[other_P[pair]].astype(np.float64))
    order_P = np.lexsort((-cosine_P, row_P))
    first_B = np.searchsorted(row_P, np.arange(len(row_B)))
    nearest_BL = cosine_P[order_P][first_B[:, None] + np.arange(near)]
    value_B[row_B] = 1 - nearest_BL.mean(axis=1)
    return np.clip(value_B, 0, 2)
