"""Keeps the rows least like their cluster's prototype, and at least some of every cluster."""

import json
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
    IMAGE_BYTES,
    KEEP,
    POSITION,
    REASON,
    Column,
)
from clipmill.pipeline.dataset import Context, Inputs, Shards, State, Task
from clipmill.pipeline.stage import Gigabytes, location
from clipmill.stages.ops.tables.rows import added, in_order, joined, put_table, put_text
from clipmill.stages.select._clustered import (
    CLUSTER_QUOTA,
    CLUSTER_RANK,
    PRUNED,
    REASONS,
    Balance,
    SizedSelect,
    population,
)
from clipmill.stages.select._judged import judged_rows

# Shapes: N rows, M of them that are ranked, K clusters with rows, G groups of rows, B bins, P
# pairs of a group and a cluster.

PROTOTYPE_RANK = Column(
    "prototype_rank", pa.int64(), "rows, 1 up", "The least number of rows to keep that keeps it."
)


@dataclass(frozen=True, kw_only=True)
class Prototypes(SizedSelect):
    """Keep decision and `prototype_rank` (the size from which a row stays); null without cluster.

    Rows are ordered by their cosine to the centroid of their cluster, the least first (`hard`),
    ties to the smaller uid. Of N rows, each cluster has at least its first balance * N / clusters,
    rounded down: one row in 1 / balance goes to the clusters in turn. Ranks are 1, 2, 3 and so on:
    `prototype_rank <= N` keeps N rows, among them those of every smaller N. `rows` and `fraction`
    (of the ranked rows, rounded down) give N. Ranked are rows with a cluster that no earlier select
    dropped and whose image did not fail. out/prototypes.parquet has one row per cluster,
    out/prototypes.json the sizes.

    Source: self-supervised prototypes (Sorscher et al. 2022): keep what is hard where data are
    plentiful, what is easy where they are scarce; the balance is that of their class balance.
    Departs: they take the least shares of N rows first, then what is hardest, so their subsets do
    not nest. Here turns go on between two whole shares: of K clusters K - 1 rows differ at most,
    and none where balance * N, rounded down, is a multiple of K.
    Error: none; cosines are compared as stored, in float32.
    Example: {after: [ingest.image_folder, embed.clip, cluster.kmeans], fraction: 0.3}
    """

    # which rows come first: far from their centroid (hard), or near it
    order: Literal["hard", "easy"] = "hard"
    # least quota of a cluster, as a fraction of an even share; 0: none
    balance: Balance = 0.5
    memory_gb: Gigabytes = location(2)  # memory of one worker, in GB

    version = 2
    rank = PROTOTYPE_RANK.name
    reads = (CLUSTER_ID, CENTROID_COSINE)
    optional_reads = (KEEP, IMAGE_BYTES)
    writes = (KEEP, PROTOTYPE_RANK, CLUSTER_RANK, CLUSTER_QUOTA)
    reasons = REASONS

    def run(self, inputs: Inputs, ctx: Context) -> None:
        sign: Sign = 1 if self.order == "hard" else -1
        rows = ctx.map_shards(partial(binned, sign), inputs.rows)
        if not len(rows):
            ctx.restore(rows)
            return
        ctx.say("counting rows by cosine")
        totals = ctx.reduce(histogram, rows, merged)
        size = self.rows_to_keep(int(totals["rows_B"].sum()), ctx.worker.stage)
        group_B = groups(totals["rows_B"], int(totals["clusters"]))
        counts = ctx.reduce(partial(counted, group_B), rows, counts_merged)
        ranking = Ranking.of(counts, group_B, sign, self.balance)
        ctx.say("sorting rows by cosine")
        sorted_rows = ctx.shuffle(ctx.map_shards(partial(grouped, group_B), rows), "key")
        kept_K = ranking.kept(size, sorted_rows, ctx)
        ctx.map(partial(put_tables, ranking, kept_K), [size])
        ctx.say("")
        ctx.restore(ctx.map_shards(partial(judged, ranking, kept_K, size), sorted_rows))


TABLE, SUMMARY = "prototypes.parquet", "prototypes.json"
BINS = 1 << 16  # of the cosine, from -1 to 1
GROUP_ROWS = 1 << 20  # rows that are sorted together; a bin is never split
COUNTS = 1 << 24  # most counts by group and cluster: 64 MB
Sign = Literal[1, -1]


def binned(sign: Sign, shard: pa.Table) -> pa.Table:
    """Adds the bin of each ranked row; lower bins come earlier."""
    rows = population(shard)
    cosine_N = rows[CENTROID_COSINE.name].fill_null(0).to_numpy().astype(np.float64)
    bin_N = np.floor((sign * cosine_N + 1) * (BINS / 2)).clip(0, BINS - 1).astype(np.int32)
    is_ranked = rows[CLUSTER_ID.name].is_valid()
    return rows.append_column("bin", pc.if_else(is_ranked, pa.array(bin_N), None))


def histogram(rows: pa.Table) -> State:
    """Counts ranked rows by bin; `clusters` is the greatest cluster number + 1."""
    cluster = rows[CLUSTER_ID.name].drop_null().to_numpy()
    rows_B = np.bincount(rows["bin"].drop_null().to_numpy(), minlength=BINS)
    return {"rows_B": rows_B, "clusters": np.array(cluster.max(initial=-1) + 1)}


def merged(left: State, right: State) -> State:
    clusters = np.maximum(left["clusters"], right["clusters"])
    return {"rows_B": np.add(left["rows_B"], right["rows_B"]), "clusters": clusters}


def groups(rows_B: NDArray, clusters: int) -> NDArray[np.int64]:
    """Returns (B,) the group of each bin, ascending; few, so that counts by cluster stay small."""
    total = int(rows_B.sum())
    count = max(1, min(-(-total // GROUP_ROWS), COUNTS // max(1, clusters)))
    group_B = (np.cumsum(rows_B) - rows_B) * count // max(1, total)
    return np.unique(np.minimum(group_B, count - 1), return_inverse=True)[1]


def counted(group_B: NDArray, rows: pa.Table) -> State:
    """Counts ranked rows by group and cluster; pairs without rows are left out."""
    ranked = rows.filter(rows["bin"].is_valid())
    number_M = ranked[CLUSTER_ID.name].to_numpy().view(np.uint32)  # 32 bits, of -1 too
    pair_M = group_B[ranked["bin"].to_numpy()] << 32 | number_M
    pair_P, rows_P = np.unique(pair_M, return_counts=True)
    return {"pair_P": pair_P.astype(np.int64), "rows_P": rows_P}


def counts_merged(left: State, right: State) -> State:
    both = joined(left, right)
    pair_P, index = np.unique(both["pair_P"], return_inverse=True)
    return {"pair_P": pair_P, "rows_P": np.bincount(index, both["rows_P"]).astype(np.int64)}


def grouped(group_B: NDArray, rows: pa.Table) -> pa.Table:
    """Returns the rows with their group as the key; rows without one are spread."""
    bins = rows["bin"].combine_chunks()
    group = pa.array(group_B).take(bins)
    key = pc.coalesce(group, pc.subtract(-1, rows[POSITION.name].cast(pa.int64())))
    return rows.drop_columns(["bin", "key"]).append_column("group", group).append_column("key", key)


@dataclass(frozen=True)
class Ranking:
    """The ranks of rows, group by group."""

    number: NDArray[np.int32]  # (K,) of the clusters with rows
    sign: Sign
    rounds: Any  # Rounds; imported late, because its loop is compiled

    @classmethod
    def of(cls, counts: State, group_B: NDArray, sign: Sign, balance: float) -> "Ranking":
        from clipmill.stages.select._rounds import Rounds

        pair_P = counts["pair_P"].astype(np.int64)
        number_P = (pair_P & 0xFFFFFFFF).astype(np.uint32).view(np.int32)
        number_K, cluster_P = np.unique(number_P, return_inverse=True)
        rows_GK = np.zeros((int(group_B.max()) + 1, len(number_K)), np.int32)
        rows_GK[pair_P >> 32, cluster_P] = counts["rows_P"]
        return cls(number_K, sign, Rounds.of(rows_GK, balance))

    def of_group(self, group: int, partition: pa.Table) -> tuple[NDArray, ...]:
        """Returns a group's rows: index in the partition, cluster index, rank, rank in cluster."""
        row_M = np.flatnonzero(partition["group"].fill_null(-1).to_numpy() == group)
        rows = partition.take(row_M)
        row_M = row_M[in_order(rows, self.sign * rows[CENTROID_COSINE.name].to_numpy())]
        cluster_N = partition[CLUSTER_ID.name].fill_null(0).to_numpy()
        cluster_M = np.searchsorted(self.number, cluster_N[row_M])
        return row_M, cluster_M, *self.rounds.walk(group, cluster_M)

    def kept(self, size: int, rows: Shards, ctx: Context) -> NDArray[np.int64]:
        """Returns (K,) the rows of each cluster that stay; only one group has to be read."""
        group = self.rounds.group_of(size)
        counts = ctx.reduce(partial(kept_of_group, self, group, size), rows, added)
        return np.maximum(self.rounds.passed[group] + counts["kept_K"], self.rounds.turns(size))


def kept_of_group(ranking: Ranking, group: int, size: int, partition: pa.Table) -> State:
    """Counts the rows of a group that stay, by cluster."""
    _, cluster_M, rank_M, _ = ranking.of_group(group, partition)
    kept_M = cluster_M[rank_M <= size]
    return {"kept_K": np.bincount(kept_M, minlength=len(ranking.number))}


def judged(ranking: Ranking, kept_K: NDArray[np.int64], size: int, partition: pa.Table) -> pa.Table:
    """Returns keep, ranks, quota and reason of every row."""
    rank_N, in_cluster_N, quota_N = (np.zeros(len(partition), np.int64) for _ in range(3))
    for group in np.unique(partition["group"].drop_null().to_numpy()):
        row_M, cluster_M, rank_N[row_M], in_cluster_N[row_M] = ranking.of_group(group, partition)
        quota_N[row_M] = kept_K[cluster_M]
    out_N = rank_N == 0
    keep_N = ~out_N & (rank_N <= size)
    values = {PROTOTYPE_RANK: rank_N, CLUSTER_RANK: in_cluster_N, CLUSTER_QUOTA: quota_N}
    made = {c.name: pa.array(v_N, mask=out_N).cast(c.dtype) for c, v_N in values.items()}
    pruned = pc.if_else(pa.array(keep_N), None, PRUNED)
    return judged_rows(partition, pc.coalesce(partition[REASON.name], pruned), made)


def put_tables(
    ranking: Ranking, kept_K: NDArray[np.int64], size: int, task: Task
) -> dict[str, Any]:
    """Stores out/prototypes.parquet (one row per cluster) and out/prototypes.json (sizes)."""
    size_K = ranking.rounds.size
    table = pa.table(
        {
            CLUSTER_ID.name: pa.array(ranking.number, CLUSTER_ID.dtype),
            "rows": size_K,
            "least": ranking.rounds.turns(size),
            "kept": kept_K,
        }
    )
    summary = {
        "asked": size,
        "kept": int(kept_K.sum()),
        "ranked": int(size_K.sum()),
        "clusters": len(table),
    }
    put_table(TABLE, table, task)
    put_text(SUMMARY, json.dumps(summary), task)
    return summary
