"""Centres found over the whole pool: the first ones, their rounds, and a second level."""

from dataclasses import replace
from functools import partial
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clipmill.pipeline.dataset import Context, Shards, State
from clipmill.pipeline.errors import StageError
from clipmill.stages.cluster._rounds import (
    Space,
    cell_sums,
    first_state,
    in_training,
    next_round,
)
from clipmill.stages.cluster._split import (
    LEAST_PARTITIONS,
    inertia_by_round,
    refined,
    shared_out,
    split,
)
from clipmill.stages.cluster._start import (
    drawn_by_coin,
    merge_drawn,
    merge_surveyed,
    plus_plus,
    surveyed,
)
from clipmill.stages.cluster._tree import Tree
from clipmill.stages.ops.states import added

if TYPE_CHECKING:
    from clipmill.stages.cluster.kmeans import KMeans

# Shapes: D width of a vector, K centres, P parents, R rounds.


def found(
    stage: "KMeans", rows: Shards, pool: int, ctx: Context
) -> tuple[Space, Tree, dict[str, NDArray]]:
    """The space of the rows, the centres found in it, and rows and inertia by round and level."""
    assert stage.clusters is not None
    top = stage.parents or stage.clusters
    ctx.say("drawing the first centres")
    if stage.metric == "cosine" and stage.start == "sampled":
        first = ctx.reduce(partial(drawn_by_coin, top), rows, partial(merge_drawn, top))
        space = Space.of(stage.metric, pool, 1, 1, ctx.worker.device)
    else:
        first = ctx.reduce(partial(surveyed, top), rows, partial(merge_surveyed, top))
        value, square = first["greatest"].tolist()
        space = Space.of(stage.metric, pool, value, square, ctx.worker.device)
    start_KD = first["unit_KD"]
    if stage.train_fraction < 1:  # kept apart, so that a round reads no others
        rows = ctx.keep_local(ctx.map_shards(partial(in_training, stage.train_fraction), rows))
    if stage.start == "kmeans++":
        start_KD = plus_plus(ctx, rows, first, top)

    def step(state: State, number: int) -> State:
        cells = partial(cell_sums, state["centre_KD"], space=space)
        sums = ctx.reduce(cells, rows, added)
        if len(start_KD) and not sums["count_K"].any():
            what = f"none of the rows is in the share of {stage.train_fraction:g} of them"
            raise StageError(what, f"stage '{ctx.worker.stage}'", "raise train_fraction")
        return next_round(state, sums, space)

    ctx.say("moving the centres")
    end = ctx.iterate(
        first_state(start_KD), step, stage.rounds, until=lambda state: not state["moved"]
    )
    ctx.say("")
    centre_KD, by_round = end["centre_KD"], {"": end["round_R2"]}
    if stage.parents is None or not len(centre_KD):
        return space, Tree(centre=centre_KD, device=space.device), by_round
    ctx.say("counting the rows of each parent")
    cells = partial(cell_sums, centre_KD, space=space)
    count_P = ctx.reduce(cells, rows, added)["count_K"]
    partitions = max(LEAST_PARTITIONS, ceil(ctx.partitions(rows) * stage.train_fraction))
    children = split(
        ctx,
        rows,
        partitions,
        space,
        centre_KD,
        shared_out(stage.clusters, count_P),
        stage.start,
        stage.rounds,
    )
    tree = Tree.of(centre_KD, children, space.device)
    end = refined(ctx, rows, partitions, space, tree)
    ctx.say("")
    rounds_R2 = np.concatenate([inertia_by_round(children), end["round_R2"]])
    return space, replace(tree, centre=end["centre_KD"]), {**by_round, "2": rounds_R2}
