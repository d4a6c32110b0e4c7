"""Draws the first centres of k-means, and splits each parent into children of a second level."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import POSITION, SHARD, UID
from clipmill.metadata.uid import coin, coin_hash, from_halves, halves, uniform
from clipmill.pipeline.dataset import Context, Shards, State
from clipmill.stages.cluster._rounds import (
    PARENT,
    Space,
    Tree,
    far_sums,
    first_state,
    in_training,
    means,
    settled,
    squared,
)
from clipmill.stages.ops.tables.rows import added, joined
from clipmill.stages.ops.vectors.matrices import as_matrix, from_matrix
from clipmill.stages.ops.vectors.nearest import nearest_centre, sums_by_group

# Shapes: N rows, D width of a vector, K centres or rows drawn, M of them in a partition, P parents,
# R rounds, C candidates.

LEAST_PARTITIONS = 4
REFINED = 2  # rounds in which rows may leave their parent; more gain little
CHILD = "child"


def shared_out(clusters: int, rows_P: NDArray) -> NDArray[np.int64]:
    """Returns (P,) each parent's number of children: 1 if it has rows, the rest by its rows."""
    least_P = np.minimum(rows_P, 1)
    left = max(0, clusters - int(least_P.sum()))
    until_P = np.cumsum(rows_P)
    total = max(1, int(rows_P.sum()))
    # Python's integers: a product of rows and clusters may pass 64 bits.
    ends_P = np.array([left * until // total for until in until_P.tolist()], np.int64)
    return np.minimum(least_P + np.diff(ends_P, prepend=0), rows_P)


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
    """Returns the children of every parent, each found among the rows nearest to that parent.

    A parent's rows meet in one partition, in memory for all rounds; so they are written once and
    read once.
    """
    ctx.say("bringing the rows of each parent together")
    with_parent = partial(under_parent, parent_PD, space.device)
    met = ctx.shuffle(ctx.map_shards(with_parent, rows), PARENT, partitions)
    ctx.say("splitting clusters")
    settings = {"start": start, "seed": ctx.worker.seed, "stage": ctx.worker.stage}
    children = ctx.reduce(partial(children_of, children_P, space, rounds, settings), met, joined)
    ctx.drop(met)
    return children


def under_parent(parent_PD: NDArray, device: str, rows: pa.Table) -> pa.Table:
    """Adds the parent of each row."""
    rows = with_width(rows, parent_PD)
    parent_N = nearest_centre(as_matrix(rows["unit"]), parent_PD, "euclidean", device=device)
    return rows.append_column(PARENT, pa.array(parent_N))


def children_of(
    children_P: NDArray, space: Space, rounds: int, settings: dict[str, Any], rows: pa.Table
) -> State:
    """Returns the centres under each parent of a partition, and rows and inertia by round."""
    parent_N = rows[PARENT].to_numpy()
    order_N = np.argsort(parent_N, kind="stable")
    parent_P, begin_P = np.unique(parent_N[order_N].astype(np.int64), return_index=True)
    width = rows.schema.field("unit").type.list_size
    centres, by_round = [np.empty((0, width), np.float32)], []
    groups = np.split(order_N, begin_P[1:])  # without rows one, of no parent
    for parent, index in zip(parent_P.tolist(), groups, strict=False):
        members = rows.take(pa.array(index))
        start_KD = in_memory(members, int(children_P[parent]), parent=parent, **settings)
        state = settled(space, start_KD, as_matrix(members["unit"]), rounds)
        centres.append(state["centre_KD"])
        last = rounds - len(state["round_R2"])  # constant from there on
        by_round.append(np.pad(state["round_R2"], ((0, last), (0, 0)), mode="edge"))
    count_P = np.array([*map(len, centres[1:])], np.int64)
    return {
        "parent_K": np.repeat(parent_P, count_P),
        "centre_KD": np.concatenate(centres),
        "parent_P": parent_P,
        "round_PR2": np.array(by_round).reshape(len(by_round), rounds, 2),
    }


def inertia_by_round(children: State) -> NDArray[np.float64]:
    """Returns (R, 2) rows and inertia of all parents' children at the start of each round."""
    by_parent_PR2 = children["round_PR2"][np.argsort(children["parent_P"], kind="stable")]
    return by_parent_PR2.sum(axis=0)


def refined(ctx: Context, rows: Shards, partitions: int, space: Space, tree: Tree) -> State:
    """Moves the children to the means of the rows that are nearest to them, under any parent.

    A border between parents cuts through clusters, so a parent split on its own has only a part of
    them. The rows of a child meet in one partition, as those of a parent did.
    """

    def step(state: State, number: int) -> State:
        current = replace(tree, centre=state["centre_KD"])
        with_child = partial(under_child, current)
        together = ctx.shuffle(ctx.map_shards(with_child, rows), PARENT, partitions)
        moved = ctx.reduce(partial(child_means, current.centre, space), together, joined)
        ctx.drop(together)
        mean_KD = current.centre.copy()
        mean_KD[moved["child_M"]] = moved["mean_MD"]  # a child without rows stays
        far = moved["far_M"].sum() / space.square_steps
        return {
            "centre_KD": mean_KD,
            "moved": np.array((mean_KD != current.centre).any(axis=1).sum()),
            "round_R2": np.vstack([state["round_R2"], [moved["count_M"].sum(), far]]),
        }

    ctx.say("refining clusters")
    return ctx.iterate(
        first_state(tree.centre), step, REFINED, until=lambda state: not state["moved"]
    )


def under_child(tree: Tree, rows: pa.Table) -> pa.Table:
    """Adds the child nearest to each row, and the child's parent."""
    assert tree.parent_of is not None
    rows = with_width(rows, tree.centre)
    child_N = tree.nearest(as_matrix(rows["unit"]), 1)[:, 0]
    rows = rows.append_column(CHILD, pa.array(child_N))
    return rows.append_column(PARENT, pa.array(tree.parent_of[child_N]))


def with_width(rows: pa.Table, centre_KD: NDArray) -> pa.Table:
    """Returns the rows; if there are none, their vectors get the width of the centres."""
    if len(rows):
        return rows
    return rows.set_column(rows.column_names.index("unit"), "unit", from_matrix(centre_KD[:0]))


def child_means(centre_KD: NDArray, space: Space, rows: pa.Table) -> State:
    """Returns number, mean, rows and squared distances of the children in a partition."""
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


DRAWS = 5  # of candidates, one per cluster each time: k-means|| levels off there
SAMPLE = 64  # least rows per cluster that candidates are drawn from
IN_MEMORY = 16  # least rows per cluster among those of one parent, which are in memory


def drawn(key_N: NDArray, number: int, rows: pa.Table) -> State:
    """Returns the `number` rows with the lowest keys, lowest first."""
    identity = {
        "coin_K": key_N,
        "uid_K2": halves(rows[UID.name]),
        "shard_K": rows[SHARD.name].to_numpy(),
        "position_K": rows[POSITION.name].to_numpy(),
    }
    return _lowest(number, {**identity, "unit_KD": as_matrix(rows["unit"])})


def drawn_by_coin(number: int, rows: pa.Table) -> State:
    """Returns the `number` rows with the lowest coins, lowest first."""
    return drawn(rows["coin"].to_numpy(), number, rows)


def merge_drawn(number: int, a: State, b: State) -> State:
    return _lowest(number, joined(a, b))


def _lowest(number: int, rows: State) -> State:
    first_K = _order(rows)[:number]
    return {name: values[first_K] for name, values in rows.items()}


def _order(rows: State) -> NDArray[np.int64]:
    """Returns the order by key; among equal keys by uid, then by place, if uids repeat."""
    high, low = rows["uid_K2"].T
    return np.lexsort((rows["position_K"], rows["shard_K"], low, high, rows["coin_K"]))


def surveyed(number: int, rows: pa.Table) -> State:
    """Returns the rows of lowest coins; the number, greatest value and squared length of all."""
    row_ND = as_matrix(rows["unit"])
    squares_N = squared(row_ND, np.zeros((1, row_ND.shape[1])), np.zeros(len(row_ND), np.int64))
    return drawn_by_coin(number, rows) | {
        "rows": np.array(len(rows)),
        "greatest": np.array([np.abs(row_ND).max(initial=0), squares_N.max(initial=0)]),
    }


def merge_surveyed(number: int, a: State, b: State) -> State:
    names = [name for name in a if name not in ("rows", "greatest")]
    lowest = merge_drawn(number, *({name: state[name] for name in names} for state in (a, b)))
    return lowest | {
        "rows": np.add(a["rows"], b["rows"]),
        "greatest": np.maximum(a["greatest"], b["greatest"]),
    }


def plus_plus(ctx: Context, rows: Shards, first: State, number: int) -> NDArray:
    """Returns k-means++ centres over rows that no machine holds whole.

    Source: k-means|| (Bahmani et al. 2012): a few draws of many candidates, each row by its squared
    distance to earlier ones; k-means++ takes the centres from the candidates, weighted by the rows
    nearest to each. Departs: a draw takes a fixed number of rows, without replacement, by keys
    -log(u) / distance (Efraimidis & Spirakis 2006), u a hash of the uid: one pass per draw, and the
    same rows for any shards.
    """
    if not len(first["unit_KD"]):
        return first["unit_KD"]
    share = SAMPLE * number / max(1, int(first["rows"]))
    seed, stage, device = ctx.worker.seed, ctx.worker.stage, ctx.worker.device

    def draw(state: State, turn: int) -> State:
        coins = partial(coin_hash, seed=seed, stage=stage, purpose=f"draw {turn}")
        keys = partial(far_drawn, state["centre_CD"], device, number, share, coins)
        candidate_rows = ctx.reduce(keys, rows, partial(merge_drawn, number))
        if not len(candidate_rows["unit_KD"]):  # and then may lack a width
            return state
        return {"centre_CD": np.concatenate([state["centre_CD"], candidate_rows["unit_KD"]])}

    ctx.say("drawing candidates for the first centres")
    candidates = ctx.iterate({"centre_CD": first["unit_KD"][:1]}, draw, DRAWS)["centre_CD"]
    near = partial(near_counts, candidates, device, share)
    weight_C = ctx.reduce(near, rows, added)["count_C"]
    coin_K = step_coins(number, seed, stage, 0)
    return candidates[chosen(candidates, weight_C, coin_K)]


def far_drawn(
    centre_CD: NDArray, device: str, number: int, share: float, coins: partial, rows: pa.Table
) -> State:
    """Returns the rows that a draw by squared distance to the nearest candidate takes."""
    rows = in_training(share, rows)
    row_ND = as_matrix(rows["unit"])
    far_N = squared(
        row_ND, centre_CD, nearest_centre(row_ND, centre_CD, "euclidean", device=device)
    )
    rows, far_N = rows.filter(pa.array(far_N > 0)), far_N[far_N > 0]
    u_N = uniform(coins(rows[UID.name])) + 2.0**-54  # never 0
    return drawn(-np.log(u_N) / far_N, number, rows)


def near_counts(centre_CD: NDArray, device: str, share: float, rows: pa.Table) -> State:
    row_ND = as_matrix(in_training(share, rows)["unit"])
    index_N = nearest_centre(row_ND, centre_CD, "euclidean", device=device)
    return {"count_C": np.bincount(index_N, minlength=len(centre_CD))}


def step_coins(number: int, seed: int, stage: str, parent: int) -> NDArray[np.float64]:
    """Returns (K,) coins in [0, 1), one for each step of k-means++."""
    steps_K2 = np.stack([np.full(number, parent), np.arange(number)], axis=1).astype(np.uint64)
    return coin(from_halves(steps_K2), seed=seed, stage=stage, purpose="step")


def chosen(row_ND: NDArray, weight_N: NDArray, coin_K: NDArray) -> NDArray[np.int64]:
    """Returns (K,) the rows that k-means++ takes; fewer if all others equal one of these.

    Source: k-means++ (Arthur & Vassilvitskii 2007), with a coin for each step.
    """
    far_N = np.full(len(row_ND), np.inf)
    mass_N = weight_N.astype(np.float64)
    taken: list[int] = []
    for coin_ in coin_K:
        until_N = np.cumsum(mass_N)
        if not len(until_N) or not until_N[-1] > 0:
            break
        # The first whose share ends past the coin; a rounded product may land on the total.
        row = min(
            np.searchsorted(until_N, coin_ * until_N[-1], side="right"), np.flatnonzero(mass_N)[-1]
        )
        taken.append(int(row))
        here_N = np.full(len(row_ND), row)
        far_N = np.minimum(far_N, squared(row_ND, row_ND, here_N))
        mass_N = weight_N * far_N
    return np.array(taken, np.int64)


def in_memory(
    rows: pa.Table, number: int, start: str, seed: int, stage: str, parent: int
) -> NDArray:
    """Returns the first centres among rows of one parent."""
    many = number if start == "sampled" else IN_MEMORY * number
    lowest = drawn_by_coin(many, rows)["unit_KD"]
    if start == "sampled":
        return lowest
    coin_K = step_coins(number, seed, stage, parent + 1)
    return lowest[chosen(lowest, np.ones(len(lowest)), coin_K)]
