"""Clusters of embeddings by direction or by distance, over the whole pool."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import (
    CENTROID_COSINE,
    CLUSTER_ID,
    IMAGE_EMBEDDING,
    KEEP,
    NEAREST_CLUSTERS,
    NEAREST_COSINES,
    Column,
)
from clipmill.metadata.uid import coin_hash
from clipmill.pipeline.dataset import Context, Inputs
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.stage import (
    DatasetStage,
    Gigabytes,
    Gpus,
    NonEmpty,
    OneUp,
    Resources,
    Share,
    later,
    location,
)
from clipmill.stages.cluster._given import given_tree, space_of
from clipmill.stages.cluster._points import REASONS, assigned, points_of
from clipmill.stages.cluster._rounds import cell_sums
from clipmill.stages.cluster._tables import put_results
from clipmill.stages.cluster._training import found
from clipmill.stages.cluster._tree import tree_sums
from clipmill.stages.ops.centroids import FILE, look_for
from clipmill.stages.ops.outside import listing_digest
from clipmill.stages.ops.states import added

MOST_PLUS_PLUS = 10_000  # clusters of one level: the last draws, one by one, take minutes there


@dataclass(frozen=True, kw_only=True)
class KMeans(DatasetStage):
    """Nearest of `clusters` centres and the cosine to it, in [-1, 1]; null without an embedding.

    By `cosine` a row is its direction, and so is a centre, the mean of its rows at length 1; by
    `euclidean` rows are taken as they are, a zero vector too, and centres are their means, at any
    length. centroid_cosine is null where either is zero. Rows that an earlier select dropped take
    no part.

    out/centroids.parquet has a row a cluster: its centroid, its rows, and their inertia (sum of
    squared distances to it, by cosine of unit vectors); out/rounds.parquet has rows and inertia of
    the training rows at the begin of each round; out/clusters.json has the sums. A stage takes the
    centroids by `centroids: "stage:NAME"`: this one, too, then assigns and finds none of its own.

    `parents` makes two levels, of which a row costs parents + clusters / parents products a round
    instead of `clusters`: some clusters first, and each of these split on its own, into more where
    it has more rows. A row then belongs to the nearest child of the 8 parents nearest to it, to
    whose rows the children move in two last rounds.
    Source: spherical k-means (Dhillon & Modha 2001), as SemDeDup takes it; Lloyd's by `euclidean`,
    as DataComp takes it; two levels as faiss's two_level_clustering has them. Departs: `sampled`
    starts from the rows whose uids hash lowest; an empty cluster takes half of the largest one (as
    faiss does), so with fewer distinct vectors than clusters some stay empty.
    Error: sums are in fixed point, in steps of 2^-32 of the greatest value at a billion rows and of
    less in smaller pools, so no order of rows or shards changes a bit.
    Example: {after: [ingest.image_folder, embed.clip], clusters: 100}
    """

    # how many; fewer where there are fewer rows
    clusters: OneUp | None = None
    rounds: OneUp = 20  # at most; fewer when no centre moves any more
    column: NonEmpty = IMAGE_EMBEDDING.name  # the embeddings that are clustered
    # share of the rows, by hash, that the centres are found on; all rows get their cluster in any
    # case
    train_fraction: Share = 1.0
    # cosine compares directions; euclidean rows as they are, with means of any length: DataComp's
    metric: Literal["cosine", "euclidean"] = later("cosine")
    # the first centres: rows drawn by hash, or rows far from each other, which costs 15 rounds more
    # of at least 64 rows a cluster
    start: Literal["sampled", "kmeans++"] = later("sampled")
    # of two levels: clusters of the first; best near the root of `clusters`, from 50,000 of these
    # on
    parents: OneUp | None = later(None)
    m: OneUp = later(1)  # nearest centres stored of each row; cluster labels to train on: 8
    # instead of `clusters`: stage:NAME, or a Parquet of centroids; rows are assigned to these
    centroids: NonEmpty | None = later(None)
    # GPUs of one worker; 0.5 shares one between two. The values are the same; no GPU has been tried
    gpus: Gpus = location(0)
    memory_gb: Gigabytes = location(2)  # memory of one worker, in GB

    version = 2
    determinism = "exact"
    takes = ("rows", "centroids")
    gives = ("rows", "centroids")
    optional_reads = (KEEP,)
    artifacts = (("centroids", FILE),)
    reasons = REASONS

    def __post_init__(self) -> None:
        clusters, parents = self.clusters, self.parents
        if (clusters is None) == (self.centroids is None):
            what = "neither `clusters` nor `centroids` is given"
            what = what if clusters is None else "`clusters` and `centroids` are both given"
            do = "write clusters: 1000 to find some, or centroids: … to assign rows to those"
            raise RecipeError(what, "its settings", do)
        if clusters is None:
            trained = {"rounds": 20, "train_fraction": 1.0, "start": "sampled", "parents": None}
            for name, default in trained.items():
                if getattr(self, name) != default:
                    what = f"`{name}` is about finding centroids, and these are given"
                    raise RecipeError(what, f"key `{name}`", "leave it out, or leave centroids out")
            return
        if self.m > clusters:
            what = f"m: {self.m} nearest of clusters: {clusters}"
            raise RecipeError(what, "key `m`", f"write m: {clusters} or less")
        if parents is not None and 2 * parents > clusters:
            what = f"parents: {parents} of clusters: {clusters}, fewer than 2 children each"
            do = f"write parents: {max(1, round(clusters**0.5))}, the root of clusters"
            raise RecipeError(what, "key `parents`", do)
        most = max(parents, clusters // parents) if parents else clusters
        if self.start == "kmeans++" and most > MOST_PLUS_PLUS:
            what = f"start: kmeans++ of {most:,} clusters at once; {MOST_PLUS_PLUS:,} is the most"
            raise RecipeError(what, "key `start`", "write start: sampled, or parents: …")

    @property
    def reads(self) -> tuple[Column, ...]:
        return (replace(IMAGE_EMBEDDING, name=self.column),)

    @property
    def writes(self) -> tuple[Column, ...]:
        if self.m == 1:
            return CLUSTER_ID, CENTROID_COSINE
        clusters = replace(NEAREST_CLUSTERS, dtype=pa.list_(pa.int32(), self.m))
        cosines = replace(NEAREST_COSINES, dtype=pa.list_(pa.float32(), self.m))
        return CLUSTER_ID, CENTROID_COSINE, clusters, cosines

    @property
    def resources(self) -> Resources:  # millions of centres need more
        return Resources(gpus=self.gpus, memory_gb=self.memory_gb)

    def look(self) -> None:
        look_for(self.centroids)

    def outside(self) -> str:
        """The time and size of the file of given centroids."""
        return listing_digest(self.centroids)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        coins = partial(coin_hash, seed=ctx.worker.seed, stage=ctx.worker.stage, purpose="train")
        tree = None
        if self.clusters is None:
            tree = given_tree(self.centroids or "", self.metric, self.column, inputs, ctx)
        width = None if tree is None else tree.centre.shape[1]
        points = partial(
            points_of, self.column, self.metric, coins, width, inputs.model_of.get(self.column)
        )
        held = ctx.keep_local(inputs.rows)  # for the end: so storage is read once
        rows = ctx.keep_local(ctx.map_shards(points, held))
        pool = sum(inputs.rows.rows(shard) for shard in range(len(inputs.rows)))
        by_round: dict[str, NDArray] = {}
        if tree is not None:
            space = space_of(tree, self.metric, rows, pool, ctx)
        else:
            space, tree, by_round = found(self, rows, pool, ctx)
        ctx.say("counting the rows of each cluster")
        if tree.parent is None:
            sums = ctx.reduce(partial(cell_sums, tree.centre, space=space), rows, added)
        else:
            sums = ctx.reduce(partial(tree_sums, tree, space), rows, added)
        ctx.say("")
        put_results(ctx, self, inputs, tree, sums, space, by_round)
        stored = partial(assigned, self.column, self.metric, self.m, tree)
        ctx.restore(ctx.map_shards(stored, held))
