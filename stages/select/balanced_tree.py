"""Takes rows evenly from the branches of a tree of clusters, as far as each has them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import (
    CENTROID_COSINE,
    CLUSTER_ID,
    IMAGE_BYTES,
    KEEP,
    REASON,
    UID,
    Column,
)
from clipmill.metadata.uid import coin_hash
from clipmill.pipeline.dataset import Context, Inputs, State
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.stage import NonEmpty, OneUp, Share, Threshold
from clipmill.stages.ops.outside import listing_digest
from clipmill.stages.ops.tables.keeper import PREFERENCE, Keep, best_first, preference
from clipmill.stages.ops.tables.rows import DROPPED, added
from clipmill.stages.ops.vectors.centroids import look_for
from clipmill.stages.select._clustered import SizedSelect, keyed_by_cluster, refuse_strangers
from clipmill.stages.select._judged import NO_IMAGE, first_of, judged_rows, left_out

if TYPE_CHECKING:
    from clipmill.stages.select._tree import Tree

# Shapes: N rows, K clusters.

TREE_RANK = Column(
    "tree_rank", pa.int64(), "rows, 1 up", "The least target of the tree that takes the row."
)
TREE_PATH = Column(
    "tree_path",
    pa.list_(pa.int32()),
    "nodes",
    "From below the root to the row's cluster, each by its number in its level.",
)
LEAF_RANK = Column("leaf_rank", pa.int64(), "rows, 1 up", "Place among its cluster's rows.")
LEAF_QUOTA = Column("leaf_quota", pa.int64(), "rows, 0 up", "Rows that stay of its cluster.")
MADE = (TREE_RANK, TREE_PATH, LEAF_RANK, LEAF_QUOTA)
OUT = "balanced_out"


@dataclass(frozen=True, kw_only=True)
class BalancedTree(SizedSelect):
    """Keep decision of each row, and its `tree_rank`, 1 up; null for rows without a cluster.

    Clusters are the leaves of a tree, whose upper `levels` are k-means of the centroids below. The
    root's target is the number of rows to keep; a node with target T gives each child the target
    min(x, its rows), by the integer x that brings their sum nearest to T (of two, the greater). A
    cluster keeps that many rows, the first in `order`. The `tree_rank` of a row is the least target
    that takes it: another target is a query on it, and a greater one keeps all that a smaller one
    keeps. Only rows that no earlier select dropped and whose image did not fail are counted.
    out/tree.parquet has one row per node: `level` (0 for clusters), `node`, `parent`, `rows`,
    `quota`, `kept`; out/tree.json has the target and the rows kept.

    Source: hierarchical balanced sampling (Vo et al. 2024), section 3. Departs: nodes start from
    the points whose numbers hash lowest; no resampling of a node's nearest points; rows that x
    leaves over are not dealt to random children, as the released code does to meet T: a greater
    target could then drop what a smaller one keeps.
    Error: the rule decides how many stay, not the target alone: a node of C branches is off by
    C / 2 rows at most, either way (seen: 18 of 500).
    Example: {after: [ingest.image_folder, embed.clip, cluster.kmeans],
      centroids: "stage:kmeans", levels: [50, 10], rows: 5000}
    """

    # the clusters: stage:NAME of a cluster.kmeans, or a Parquet with a column `centroid`
    centroids: NonEmpty
    # number of nodes of each level above the clusters, the lowest first; [] balances clusters
    levels: tuple[OneUp, ...]
    rows: OneUp | None = None  # target of the tree: rows to keep
    fraction: Share | None = None  # or: share of the rows with a cluster
    # first rows of a cluster: by hash, or those most or least like its centroid; ties by uid
    order: Literal["random", "nearest", "farthest"] = "random"
    rounds: OneUp = 20  # most k-means rounds of a level; fewer once no node moves

    version = 1
    rank = TREE_RANK.name
    takes = ("rows", "centroids")
    optional_reads = (KEEP, IMAGE_BYTES)
    writes = (KEEP, *MADE)
    reasons = (DROPPED, NO_IMAGE, f"undefined:{CLUSTER_ID.name}", OUT)

    def __post_init__(self) -> None:
        super().__post_init__()
        for below, above in pairwise(self.levels):
            if above >= below:
                found = f"levels go from {below} up to {above} nodes"
                do = "give each level fewer nodes than the one below it: [500, 50, 10]"
                raise RecipeError(found, "key `levels`", do)

    @property
    def reads(self) -> tuple[Column, ...]:
        return (CLUSTER_ID,) if self.order == "random" else (CLUSTER_ID, CENTROID_COSINE)

    def look(self) -> None:
        look_for(self.centroids)

    def outside(self) -> str:
        """Returns the time and size of the centroids' file, if the setting names one."""
        return listing_digest(self.centroids)

    def thresholds(self) -> tuple[Threshold, ...]:
        """Returns the target, as a number or a share of rows."""
        return (replace(super().thresholds()[0], sign="<="),)

    def explain(self, reason: str, made: Mapping[str, Any]) -> str:
        """Returns cluster, path, quota and place, and the least target that takes the row."""
        if reason not in ("", OUT):
            return ""
        *above, cluster = made[TREE_PATH.name]
        path = f" below {' / '.join(map(str, above))}" if above else ""
        return (
            f"cluster {cluster}{path} keeps {made[LEAF_QUOTA.name]:,} rows, and it is number "
            f"{made[LEAF_RANK.name]:,}; a target of {made[TREE_RANK.name]:,} rows takes it"
        )

    def run(self, inputs: Inputs, ctx: Context) -> None:
        from clipmill.stages.select import _tree as trees  # compiled: imported late

        where = f"stage '{ctx.worker.stage}'"
        source = inputs.centroids, self.centroids, where, self.outside()
        vector_KD, metric = trees.of_clusters(*source)
        if self.levels and self.levels[0] > len(vector_KD):
            raise StageError(
                found=f"{self.levels[0]:,} nodes above {len(vector_KD):,} clusters",
                where=f"{where}, key `levels`",
                do=f"begin with {len(vector_KD):,} nodes at most, or make more clusters",
            )
        members = partial(with_place, self.order, ctx.worker.seed, ctx.worker.stage)
        rows = ctx.map_shards(members, inputs.rows)
        if not len(rows):
            ctx.restore(rows)
            return
        load = partial(trees.clusters_alone, *source)
        parents = trees.parents_of(load, metric, self.levels, self.rounds, ctx)
        ctx.say("counting rows of clusters")
        counts = ctx.reduce(partial(counted, len(vector_KD), where), rows, added)
        tree = trees.Tree.over(counts["rows_K"], parents, self.levels)
        target = self.rows_to_keep(tree.rows, ctx.worker.stage)
        ctx.map(partial(trees.put_tree, tree), [target])
        ctx.say("taking rows of clusters")
        clusters = ctx.shuffle(rows, "key")
        ctx.restore(ctx.map_shards(partial(judged, tree, target), clusters))


def with_place(order: str, seed: int, stage: str, shard: pa.Table) -> pa.Table:
    """Returns identity, cluster and preference in it; for rows without a cluster, the reason."""
    has_none = shard[CLUSTER_ID.name].is_null()
    reason = first_of({**left_out(shard), f"undefined:{CLUSTER_ID.name}": has_none})
    if order == "random":
        coin_N = coin_hash(shard[UID.name], seed=seed, stage=stage, purpose="leaf")
        end_N = pa.array(np.arange(len(shard) + 1, dtype=np.int32))
        first = pa.ListArray.from_arrays(end_N, pa.array(coin_N))
    else:
        by = Keep(column=CENTROID_COSINE.name, order="desc" if order == "nearest" else "asc")
        first = preference(by, shard)
    return keyed_by_cluster(shard, reason, {PREFERENCE.name: first})


def counted(clusters: int, where: str, rows: pa.Table) -> State:
    """Counts rows by cluster; StageError if a row's cluster has no centroid."""
    id_N = rows[CLUSTER_ID.name].drop_null().to_numpy()
    refuse_strangers(id_N, clusters, where)
    return {"rows_K": np.bincount(id_N, minlength=clusters)}


def judged(tree: "Tree", target: int, partition: pa.Table) -> pa.Table:
    """Returns keep, ranks, path and quota of every row; each cluster is whole in its partition."""
    has_cluster = partition[CLUSTER_ID.name].is_valid()
    rows = partition.filter(has_cluster)
    leaf_N = rows[CLUSTER_ID.name].to_numpy().astype(np.int64)
    best_N = best_first(rows)
    order_N = best_N[np.argsort(leaf_N[best_N], kind="stable")]  # by cluster, then best first
    ordered_N = leaf_N[order_N]
    place_N = np.empty(len(rows), np.int64)
    place_N[order_N] = np.arange(len(rows)) - np.searchsorted(ordered_N, ordered_N) + 1
    path_NL = tree.paths(leaf_N)
    end_N = np.arange(len(rows) + 1, dtype=np.int32) * np.int32(path_NL.shape[1])
    of_rows = {
        TREE_RANK.name: pa.array(tree.least_target(leaf_N, place_N)),
        TREE_PATH.name: pa.ListArray.from_arrays(pa.array(end_N), pa.array(path_NL.reshape(-1))),
        LEAF_RANK.name: pa.array(place_N),
        LEAF_QUOTA.name: pa.array(tree.quotas(target)[0][leaf_N]),
    }
    # Back to all rows: null for those without a cluster.
    index_N = np.cumsum(has_cluster.to_numpy()) - 1
    index = pa.array(index_N, mask=~has_cluster.to_numpy())
    made = {name: values.take(index) for name, values in of_rows.items()}
    is_out = pc.greater(made[TREE_RANK.name], target).fill_null(False)
    reason = pc.coalesce(partition[REASON.name], pc.if_else(is_out, OUT, None))
    return judged_rows(partition, reason, made)
