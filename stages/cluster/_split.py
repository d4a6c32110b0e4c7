"""The second level of clusters: each parent split in memory, then refined over its neighbours."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.pipeline.dataset import Context, Shards, State
from clipmill.stages.cluster._rounds import (
    Space,
    far_sums,
    first_state,
    means,
    settled,
    squared,
)
from clipmill.stages.cluster._start import in_memory
from clipmill.stages.cluster._tree import PARENT, Tree
from clipmill.stages.ops.nearest import nearest_centre, sums_by_group
from clipmill.stages.ops.states import joined
from clipmill.stages.ops.vectors import as_matrix, from_matrix

# Shapes: N rows, D width of a vector, K centres, M of them in a partition, P parents, R rounds.

LEAST_PARTITIONS = 4
REFINED = 2  # rounds in which rows may leave their parent: most of what these can give
CHILD = "child"


def shared_out(clusters: int, rows_P: NDArray) -> NDArray[np.int64]:
    """(P,) children of each parent: one where it has rows, the others in proportion to these."""
    one_P = np.minimum(rows_P, 1)
    left = max(0, clusters - int(one_P.sum()))
    until_P = np.cumsum(rows_P)
    total = max(1, int(rows_P.sum()))
    # Whole numbers of Python's: a product of rows and clusters may pass 64 bits.
    ends_P = np.array([left * until // total for until in until_P.tolist()], np.int64)
    return np.minimum(one_P + np.diff(ends_P, prepend=0), rows_P)


def split(
    ctx: Context,
    rows: Shards,
    partitions: int,
    space: Space,
    parent_PD: NDArray,
    children_P: NDArray,
    start: str,
    rounds: int,
) -> State:
    """The children of every parent, each found among the rows nearest to that parent.

    A parent's rows meet in one partition, in memory, for all rounds: what is stored of them is
    written once and read once.
    """
    ctx.say("bringing the rows of each parent together")
    with_parent = partial(under_parent, parent_PD, space.device)
    together = ctx.shuffle(ctx.map_shards(with_parent, rows), PARENT, partitions)
    ctx.say("splitting clusters")
    settings = {"start": start, "seed": ctx.worker.seed, "stage": ctx.worker.stage}
    found = ctx.reduce(partial(children_of, children_P, space, rounds, settings), together, joined)
    ctx.drop(together)
    return found


def under_parent(parent_PD: NDArray, device: str, rows: pa.Table) -> pa.Table:
    """The rows, and the parent of each."""
    rows = with_width(rows, parent_PD)
    parent_N = nearest_centre(as_matrix(rows["unit"]), parent_PD, "euclidean", device=device)
    return rows.append_column(PARENT, pa.array(parent_N))


def children_of(
    children_P: NDArray, space: Space, rounds: int, settings: dict[str, Any], rows: pa.Table
) -> State:
    """The centres under each parent of a partition, and rows and inertia by round."""
    parent_N = rows[PARENT].to_numpy()
    order_N = np.argsort(parent_N, kind="stable")
    cuts = np.flatnonzero(np.diff(parent_N[order_N])) + 1
    width = rows.schema.field("unit").type.list_size
    parents, centres, by_round = [], [np.empty((0, width), np.float32)], []
    for some in np.split(order_N, cuts) if len(order_N) else []:
        parent = int(parent_N[some[0]])
        mine = rows.take(pa.array(some))
        start_KD = in_memory(mine, int(children_P[parent]), parent=parent, **settings)
        state = settled(space, start_KD, as_matrix(mine["unit"]), rounds)
        parents.append(np.full(len(start_KD), parent))
        centres.append(state["centre_KD"])
        last = rounds - len(state["round_R2"])  # it stands still from there on
        by_round.append(np.pad(state["round_R2"], ((0, last), (0, 0)), mode="edge"))
    return {
        "parent_K": np.concatenate(parents or [np.empty(0, np.int64)]),
        "centre_KD": np.concatenate(centres),
        "parent_P": np.array(list(dict.fromkeys(parent for one in parents for parent in one[:1]))),
        "round_PR2": np.array(by_round).reshape(len(by_round), rounds, 2),
    }


def inertia_by_round(found: State) -> NDArray[np.float64]:
    """(R, 2) rows and inertia of all parents' children at the begin of each round."""
    by_parent_PR2 = found["round_PR2"][np.argsort(found["parent_P"], kind="stable")]
    return by_parent_PR2.sum(axis=0)


def refined(ctx: Context, rows: Shards, partitions: int, space: Space, tree: Tree) -> State:
    """The children at the means of the rows that are nearest to them, of any parent.

    A border between parents cuts through clusters; split on its own, a parent has but a part of
    them. The rows of a child meet in one partition, as those of a parent did.
    """

    def step(state: State, number: int) -> State:
        now = replace(tree, centre=state["centre_KD"])
        with_child = partial(under_child, now)
        together = ctx.shuffle(ctx.map_shards(with_child, rows), PARENT, partitions)
        found = ctx.reduce(partial(child_means, now.centre, space), together, joined)
        ctx.drop(together)
        mean_KD = now.centre.copy()
        mean_KD[found["child_M"]] = found["mean_MD"]  # one without rows stays where it is
        far = found["far_M"].sum() / space.square_steps
        return {
            "centre_KD": mean_KD,
            "moved": np.array((mean_KD != now.centre).any(axis=1).sum()),
            "round_R2": np.vstack([state["round_R2"], [found["count_M"].sum(), far]]),
        }

    ctx.say("refining clusters")
    return ctx.iterate(
        first_state(tree.centre), step, REFINED, until=lambda state: not state["moved"]
    )


def under_child(tree: Tree, rows: pa.Table) -> pa.Table:
    """The rows, the child nearest to each, and the parent of that."""
    assert tree.parent_of is not None
    rows = with_width(rows, tree.centre)
    child_N = tree.nearest(as_matrix(rows["unit"]), 1)[:, 0]
    rows = rows.append_column(CHILD, pa.array(child_N))
    return rows.append_column(PARENT, pa.array(tree.parent_of[child_N]))


def with_width(rows: pa.Table, centre_KD: NDArray) -> pa.Table:
    """The rows; where there are none, and their lists say no width, with that of the centres."""
    if len(rows):
        return rows
    return rows.set_column(rows.column_names.index("unit"), "unit", from_matrix(centre_KD[:0]))


def child_means(centre_KD: NDArray, space: Space, rows: pa.Table) -> State:
    """Of the children in a partition the number, the mean, the rows, and how far these are."""
    row_ND, child_N = as_matrix(rows["unit"]), rows[CHILD].to_numpy()
    child_M, place_N = np.unique(child_N, return_inverse=True)
    sum_MD, count_M = sums_by_group(row_ND, place_N.astype(np.int32), len(child_M), space.steps)
    far_N = squared(row_ND, centre_KD, child_N)
    return {
        "child_M": child_M,
        "mean_MD": means(centre_KD[child_M], sum_MD, count_M, space),
        "count_M": count_M,
        "far_M": far_sums(space, len(child_M), place_N, far_N),
    }
