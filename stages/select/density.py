"""Which rows stay of each cluster: more of what is wide and apart, fewer of what is dense."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from msgspec import Meta

from clipmill.metadata.schema import CENTROID_COSINE, CLUSTER_ID, IMAGE_BYTES, KEEP
from clipmill.metadata.uid import coin_hash
from clipmill.pipeline.dataset import Context, Inputs, Shards
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.stage import (
    DatasetStage,
    Gigabytes,
    NonEmpty,
    OneUp,
    Parts,
    Resources,
    Share,
    Threshold,
    Verdicts,
    location,
)
from clipmill.stages.ops.centroids import look_for, read
from clipmill.stages.ops.outside import listing_digest
from clipmill.stages.ops.states import joined
from clipmill.stages.select._clustered import (
    CLUSTER_QUOTA,
    CLUSTER_RANK,
    FIXED,
    REASONS,
    Balance,
    explained,
    first_by_rank,
    first_of_parts,
    one_size,
    population,
    size_threshold,
    sizes,
    wanted,
)
from clipmill.stages.select._density import (
    DENSITY_RANK,
    Clusters,
    Cut,
    Order,
    judged,
    placed,
    put_tables,
)
from clipmill.stages.select._isolation import isolation
from clipmill.stages.select._quotas import Quotas, probabilities

# Shapes: K clusters with rows.


@dataclass(frozen=True, kw_only=True)
class Density(DatasetStage):
    """Whether a row stays, and `density_rank`: the size from which it does; null without a cluster.

    A cluster's complexity is the mean 1 - cosine of its rows to its centroid, times the mean
    1 - cosine of its centroid to the nearest others; a softmax makes shares of it. Its quota is
    clip(N * share + level, least, size), one level for all so that they sum to N. Row r of its
    order enters at the least N whose quota is r - 1/2 or more: `density_rank <= N` keeps the
    rounded quotas of every N, and the rows of N are among those of every larger N. `rows` and
    `fraction` (of the ranked rows, rounded down) keep exactly so many, the least ranks, ties to the
    smaller uid. Ranked are rows with a cluster that no earlier select dropped and whose image did
    not fail. out/density.parquet has a row a cluster, out/density.json the sizes.

    Source: Density-Based Pruning (Abbas et al. 2024) and its released code. Departs: the least
    quota is the real balance * N / clusters, which the code rounds down: then subsets do not nest.
    Only clusters with rows count. Quotas are exact, where the code's solver stops near them.
    Error: distances in fixed point, 2^-31, shares 2^-45; the rows kept of a cluster differ from its
    real quota by 1/2 at `density_rank <= N`, mostly by less than 1 at `rows`: docs/clusters.md.
    Example: {after: [ingest.image_folder, embed.clip, cluster.kmeans],
      centroids: "stage:kmeans", fraction: 0.3}
    """

    centroids: NonEmpty  # of the clusters: "stage:NAME", or a Parquet of them
    rows: OneUp | None = None  # how many rows to keep
    fraction: Share | None = None  # or: which share of those that are ranked
    # temperature of the softmax: the paper's 0.1; the released code's 0.5 makes shares of
    # complexities that differ by 0.05 differ by a tenth only
    tau: Annotated[float, Meta(gt=0)] = 0.1
    # of an even share of the rows, what each cluster keeps at least; 0: one row, as released
    balance: Balance = 0.5
    neighbours: OneUp = 20  # centroids that a cluster's distance to the others is the mean of
    # which rows of a cluster come first: those far from its centroid (hard), near it, or any
    order: Order = "hard"
    memory_gb: Gigabytes = location(4)  # memory of one worker, in GB

    version = 1
    determinism = "exact"
    takes = ("rows", "centroids")
    reads = (CLUSTER_ID, CENTROID_COSINE)
    optional_reads = (KEEP, IMAGE_BYTES)
    writes = (KEEP, DENSITY_RANK, CLUSTER_RANK, CLUSTER_QUOTA)
    reasons = REASONS

    def __post_init__(self) -> None:
        one_size(self.rows, self.fraction)

    @property
    def resources(self) -> Resources:  # all centroids, and the clusters of a partition
        return Resources(memory_gb=self.memory_gb)

    def look(self) -> None:
        look_for(self.centroids)

    def outside(self) -> str:
        """The time and size of the centroids' file, where the setting names one."""
        return listing_digest(self.centroids)

    def thresholds(self) -> tuple[Threshold, ...]:
        """`rows` or `fraction`."""
        return (size_threshold(self.rows, self.fraction, DENSITY_RANK.name),)

    def verdicts(
        self, threshold: Threshold, values: Sequence[Decimal], rows: pa.Table, made: pa.Table
    ) -> Iterator[Verdicts]:
        """The rows of the least ranks, as many as each value says."""
        return first_by_rank(threshold, values, rows, made)

    def surveyed(
        self, threshold: Threshold, values: Sequence[Decimal], parts: Parts
    ) -> Callable[[pa.Table, pa.Table], Iterator[Verdicts]]:
        """The same, of rows that are not all at hand."""
        return first_of_parts(threshold, values, parts)

    def explain(self, reason: str, made: Mapping[str, Any]) -> str:
        """Rank and quota, of a row that was ranked; its cluster is shown beside."""
        return explained(reason, made, DENSITY_RANK.name)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        coins = partial(coin_hash, seed=ctx.worker.seed, stage=ctx.worker.stage, purpose="order")
        places = partial(placed, self.order, coins)
        ctx.say("sorting rows by cluster")
        rows = ctx.shuffle(ctx.map_shards(population, inputs.rows), "key")
        if not len(rows):
            ctx.restore(rows)
            return
        clusters = self.clusters(inputs, rows, ctx)
        asked = wanted(self.rows, self.fraction, int(clusters.size.sum()), ctx.worker.stage)
        ctx.say("cutting at the size")
        cut = Cut.at(asked, clusters, places, rows, ctx)
        ctx.map(partial(put_tables, clusters, cut, self.balance), [{"asked": asked}])
        ctx.say("")
        ctx.restore(ctx.map_shards(partial(judged, clusters, cut, places), rows))

    def clusters(self, inputs: Inputs, rows: Shards, ctx: Context) -> Clusters:
        """The clusters with rows and their quotas."""
        where = f"stage '{ctx.worker.stage}'"
        count = len(read(inputs.centroids, self.centroids, where))
        sums = ctx.reduce(sizes, rows, joined)
        order_K = np.argsort(sums["cluster_K"])
        number_K, size_K, apart_K = (
            sums[name][order_K].astype(np.int64) for name in ("cluster_K", "size_K", "apart_K")
        )
        if (number_K >= count).any() or (number_K < 0).any():
            raise StageError(
                found=f"rows of cluster {number_K.max()}, and {count} centroids, from 0",
                where=f"{where}, key `centroids`",
                do="name the stage that made `cluster_id`, or the centroids that it was given",
            )
        ctx.say("comparing centroids")
        inter_K = isolation(inputs.centroids, self.centroids, self.neighbours, count, ctx)[number_K]
        intra_K = np.maximum(apart_K / FIXED / size_K, 0)
        share_K = probabilities(inter_K * intra_K, self.tau)
        return Clusters(
            number_K, size_K, intra_K, inter_K, share_K, Quotas.of(share_K, size_K, self.balance)
        )
