"""Clusters the embeddings of a whole pool by k-means, by direction or by distance."""

import json
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import CENTROID_COSINE, CLUSTER_ID, IMAGE_EMBEDDING, KEEP, Column
from clipmill.metadata.uid import coin_hash
from clipmill.pipeline.dataset import Context, Inputs, Shards, State, Task
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.stage import (
    DatasetStage,
    Gigabytes,
    Gpus,
    NonEmpty,
    OneUp,
    Share,
    later,
    location,
)
from clipmill.stages.cluster._points import (
    NEAREST_CLUSTERS,
    NEAREST_COSINES,
    REASONS,
    assigned,
    given_tree,
    points_of,
    space_of,
)
from clipmill.stages.cluster._rounds import (
    PARENT,
    Space,
    Tree,
    cell_sums,
    first_state,
    in_training,
    inertia,
    next_round,
    tree_sums,
)
from clipmill.stages.cluster._split import (
    LEAST_PARTITIONS,
    drawn_by_coin,
    inertia_by_round,
    merge_drawn,
    merge_surveyed,
    plus_plus,
    refined,
    shared_out,
    split,
    surveyed,
)
from clipmill.stages.ops.outside import listing_digest
from clipmill.stages.ops.tables.rows import added, put_table, put_text
from clipmill.stages.ops.vectors.centroids import FILE, look_for, to_table

# Shapes: K centres, R rounds; D width of a vector, P parents.

MOST_PLUS_PLUS = 10_000  # clusters of one level: more, drawn one by one, take minutes


@dataclass(frozen=True, kw_only=True)
class KMeans(DatasetStage):
    """Nearest of `clusters` centres and the cosine to it, in [-1, 1]; null without an embedding.

    By `cosine` a row is its direction, and a centre the mean of its rows at length 1; by
    `euclidean` rows are taken as they are, a zero vector too, and centres are their means, at any
    length. centroid_cosine is null if either is zero. Rows that an earlier select dropped take no
    part.

    out/centroids.parquet has one row per cluster: its centroid, its rows, and their inertia (sum of
    squared distances to it, by cosine of unit vectors); out/rounds.parquet has rows and inertia of
    the training rows at the start of each round; out/clusters.json has the sums. A stage takes the
    centroids by `centroids: "stage:NAME"`; with it this stage, too, assigns rows and finds no
    centres.

    `parents` makes two levels: a few clusters first, then each of these is split on its own, into
    more if it has more rows. A row is compared with about `parents` + `clusters` / `parents`
    centres a round, not with all `clusters`. It belongs to the nearest child of its 8 nearest
    parents; in the last two rounds the children move to the means of these rows.
    Source: spherical k-means (Dhillon & Modha 2001), as SemDeDup takes it; Lloyd's by `euclidean`,
    as DataComp takes it; two levels as faiss's two_level_clustering has them. Departs: `sampled`
    starts from the rows whose uids hash lowest; an empty cluster takes half of the largest one (as
    faiss does), so with fewer distinct vectors than clusters some stay empty.
    Error: sums are in fixed point, in steps of 2^-32 of the greatest value at a billion rows and of
    less in smaller pools, so no order of rows or shards changes a bit.
    Example: {after: [ingest.image_folder, embed.clip], clusters: 100}
    """

    # number of clusters; fewer if there are fewer rows
    clusters: OneUp | None = None
    rounds: OneUp = 20  # most rounds; fewer once no centre moves
    column: NonEmpty = IMAGE_EMBEDDING.name  # column of the embeddings to cluster
    # share of the rows, by hash, to find the centres on; every row gets its cluster
    train_fraction: Share = 1.0
    # cosine compares directions; euclidean rows as they are, with means of any length, as DataComp
    metric: Literal["cosine", "euclidean"] = later("cosine")
    # first centres: rows drawn by hash, or rows far from each other, at the cost of 15 more rounds
    # over at least 64 rows per cluster
    start: Literal["sampled", "kmeans++"] = later("sampled")
    # for two levels: number of clusters of the first, best near the square root of `clusters`;
    # worth it from 50,000 clusters on
    parents: OneUp | None = later(None)
    m: OneUp = later(1)  # nearest centres stored per row; 8 for cluster labels to train on
    # instead of `clusters`: stage:NAME, or a Parquet of centroids; rows are assigned to these
    centroids: NonEmpty | None = later(None)
    # GPUs of one worker; 0.5 shares one between two. The values are the same; no GPU has been tried
    gpus: Gpus = location(0)
    memory_gb: Gigabytes = location(2)  # memory of one worker, in GB

    version = 2
    determinism = "exact"
    learns = "keep"
    takes = ("rows", "centroids")
    gives = ("rows", "centroids")
    optional_reads = (KEEP,)
    artifacts = (("centroids", FILE),)
    reasons = REASONS

    def __post_init__(self) -> None:
        clusters, parents = self.clusters, self.parents
        if (clusters is None) == (self.centroids is None):
            neither = "neither `clusters` nor `centroids` is given"
            what = "`clusters` and `centroids` are both given" if clusters else neither
            do = "write clusters: 1000 to find some, or centroids: … to assign rows to those"
            raise RecipeError(what, "its settings", do)
        if clusters is None:
            for name in ("rounds", "train_fraction", "start", "parents"):
                if getattr(self, name) != getattr(type(self), name):  # the class holds defaults
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

    def look(self) -> None:
        look_for(self.centroids)

    def outside(self) -> str:
        """Returns the time and size of the file of given centroids."""
        return listing_digest(self.centroids)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        coins = partial(coin_hash, seed=ctx.worker.seed, stage=ctx.worker.stage, purpose="train")
        tree = None
        if self.clusters is None:
            tree = given_tree(self.centroids or "", self.metric, self.column, inputs, ctx)
        width = None if tree is None else tree.centre.shape[1]
        to_points = partial(
            points_of, self.column, self.metric, coins, width, inputs.model_of.get(self.column)
        )
        rows = ctx.keep_local(inputs.rows)  # read here and at the end, from storage only once
        points = ctx.keep_local(ctx.map_shards(to_points, rows))
        row_count = sum(inputs.rows.rows(shard) for shard in range(len(inputs.rows)))
        by_level: list[NDArray] = []
        if tree is not None:
            space = space_of(tree, self.metric, points, row_count, ctx)
        else:
            space, tree, by_level = find_centres(self, points, row_count, ctx)
        ctx.say("counting the rows of each cluster")
        if tree.parent is None:
            sums = ctx.reduce(partial(cell_sums, tree.centre, space=space), points, added)
        else:
            sums = ctx.reduce(partial(tree_sums, tree, space), points, added)
        ctx.say("")
        put_results(ctx, self, inputs, tree, sums, space, by_level)
        stored = partial(assigned, self.column, self.metric, self.m, tree)
        ctx.restore(ctx.map_shards(stored, rows))


ROUNDS, SUMMARY = "rounds.parquet", "clusters.json"


def put_results(
    ctx: Context,
    stage: KMeans,
    inputs: Inputs,
    tree: Tree,
    sums: State,
    space: Space,
    by_level: list[NDArray],
) -> None:
    """Stores centroids, rounds and sums as files in out/."""
    far_K = inertia(sums, space)
    marks = {"column": stage.column, "model": inputs.model_of.get(stage.column)}
    table = to_table(tree.centre, sums["count_K"], far_K, metric=stage.metric, **marks)
    if tree.parent is not None:
        table = table.append_column(PARENT, pa.array(tree.parent_of, pa.int32()))
    files: dict[str, Any] = {FILE: table}
    if by_level:
        files[ROUNDS] = rounds(by_level)
    files[SUMMARY] = {
        "asked": stage.clusters or len(tree.centre),
        "clusters": len(tree.centre),
        "without_rows": int((sums["count_K"] == 0).sum()),
        "parents": None if tree.parent is None else len(tree.parent),
        "rows": int(sums["count_K"].sum()),
        "metric": stage.metric,
        "inertia": float(far_K.sum()),
    }
    ctx.map(partial(put_file, files), list(files))


def rounds(by_level: list[NDArray]) -> pa.Table:
    """Returns a row per round, from 0; with two levels also the level, from 0."""
    counts = [len(round_R2) for round_R2 in by_level]
    rows_R, inertia_R = np.concatenate(by_level).T
    table = pa.table(
        {
            "round": pa.array(np.concatenate([*map(np.arange, counts)]), pa.int32()),
            "rows": pa.array(rows_R.astype(np.int64)),
            "inertia": pa.array(inertia_R),
        }
    )
    if len(by_level) > 1:
        level_R = np.repeat(np.arange(len(by_level)), counts)
        table = table.append_column("level", pa.array(level_R, pa.int32()))
    return table


def put_file(files: dict[str, Any], name: str, task: Task) -> dict[str, Any]:
    """Stores one of the files as `out/<name>`."""
    content = files[name]
    if isinstance(content, pa.Table):
        put_table(name, content, task)
    else:
        put_text(name, json.dumps(content) + "\n", task)
    return {}


def find_centres(
    stage: KMeans, points: Shards, row_count: int, ctx: Context
) -> tuple[Space, Tree, list[NDArray]]:
    """Returns the space, the centres, and (R, 2) rows and inertia by round for each level."""
    assert stage.clusters is not None
    top = stage.parents or stage.clusters
    ctx.say("drawing the first centres")
    if stage.metric == "cosine" and stage.start == "sampled":
        first = ctx.reduce(partial(drawn_by_coin, top), points, partial(merge_drawn, top))
        value = square = 1.0  # the greatest that a vector of length 1 can have
    else:
        first = ctx.reduce(partial(surveyed, top), points, partial(merge_surveyed, top))
        value, square = first["greatest"].tolist()
    space = Space.of(stage.metric, row_count, value, square, ctx.worker.device)
    start_KD = first["unit_KD"]
    if stage.train_fraction < 1:  # kept apart, so that a round reads no others
        points = ctx.keep_local(ctx.map_shards(partial(in_training, stage.train_fraction), points))
    if stage.start == "kmeans++":
        start_KD = plus_plus(ctx, points, first, top)

    def step(state: State, number: int) -> State:
        cells = partial(cell_sums, state["centre_KD"], space=space)
        sums = ctx.reduce(cells, points, added)
        if len(start_KD) and not sums["count_K"].any():
            what = f"none of the rows is in the share of {stage.train_fraction:g} of them"
            raise StageError(what, f"stage '{ctx.worker.stage}'", "raise train_fraction")
        return next_round(state, sums, space)

    ctx.say("moving the centres")
    end = ctx.iterate(
        first_state(start_KD), step, stage.rounds, until=lambda state: not state["moved"]
    )
    ctx.say("")
    centre_KD, top_R2 = end["centre_KD"], end["round_R2"]
    if stage.parents is None or not len(centre_KD):
        return space, Tree(centre=centre_KD, device=space.device), [top_R2]
    ctx.say("counting the rows of each parent")
    cells = partial(cell_sums, centre_KD, space=space)
    count_P = ctx.reduce(cells, points, added)["count_K"]
    partitions = max(LEAST_PARTITIONS, ceil(ctx.partitions(points) * stage.train_fraction))
    children = split(
        ctx,
        points,
        partitions,
        space,
        centre_KD,
        shared_out(stage.clusters, count_P),
        stage.start,
        stage.rounds,
    )
    tree = Tree.of(centre_KD, children, space.device)
    end = refined(ctx, points, partitions, space, tree)
    ctx.say("")
    child_R2 = np.concatenate([inertia_by_round(children), end["round_R2"]])
    return space, replace(tree, centre=end["centre_KD"]), [top_R2, child_R2]
