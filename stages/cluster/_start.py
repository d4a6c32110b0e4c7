"""The first centres of k-means: rows drawn by hash, or k-means++ by draws that any worker takes."""

from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import POSITION, SHARD, UID
from clipmill.metadata.uid import coin, coin_hash, from_halves, halves, uniform
from clipmill.pipeline.dataset import Context, Shards, State
from clipmill.stages.cluster._rounds import in_training, squared
from clipmill.stages.ops.nearest import nearest_centre
from clipmill.stages.ops.states import added
from clipmill.stages.ops.vectors import as_matrix

# Shapes: N rows, D width of a vector, K of them drawn, C candidates.

DRAWS = 5  # of candidates, each as many as there are clusters: where k-means|| levels off
SAMPLE = 64  # rows a cluster, at least, that the candidates are drawn from
IN_MEMORY = 16  # and where they are drawn one by one


def drawn(key_N: NDArray, number: int, rows: pa.Table) -> State:
    """The rows with the lowest keys, and lowest first."""
    identity = {
        "coin_K": key_N,
        "uid_K2": halves(rows[UID.name]),
        "shard_K": rows[SHARD.name].to_numpy(),
        "position_K": rows[POSITION.name].to_numpy(),
    }
    return _lowest(number, {**identity, "unit_KD": as_matrix(rows["unit"])})


def drawn_by_coin(number: int, rows: pa.Table) -> State:
    """The rows with the lowest coins, as many as there are clusters, and lowest first."""
    return drawn(rows["coin"].to_numpy(), number, rows)


def merge_drawn(number: int, a: State, b: State) -> State:
    some = [state for state in (a, b) if len(state["coin_K"])] or [a]  # no rows may say no width
    return _lowest(number, {name: np.concatenate([state[name] for state in some]) for name in a})


def _lowest(number: int, rows: State) -> State:
    first_K = _order(rows)[:number]
    return {name: values[first_K] for name, values in rows.items()}


def _order(rows: State) -> NDArray[np.int64]:
    """By key; among equal ones by uid, then by the row's place, if uids repeat."""
    high, low = rows["uid_K2"].T
    return np.lexsort((rows["position_K"], rows["shard_K"], low, high, rows["coin_K"]))


def surveyed(number: int, rows: pa.Table) -> State:
    """The rows with the lowest coins; how many there are, their greatest value and length."""
    row_ND = as_matrix(rows["unit"])
    squares_N = squared(row_ND, np.zeros((1, row_ND.shape[1])), np.zeros(len(row_ND), np.int64))
    return drawn(rows["coin"].to_numpy(), number, rows) | {
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
    """k-means++ centres over rows that no machine holds whole.

    Source: k-means|| (Bahmani et al. 2012): some draws of many candidates, each row by its squared
    distance to those before; of the candidates, weighted by the rows nearest to each, k-means++
    takes the centres. Departs: a draw takes a fixed number of rows, without replacement, by keys
    -log(u) / distance (Efraimidis & Spirakis 2006), u a hash of the uid: one pass a draw, and the
    same rows whatever the shards.
    """
    if not len(first["unit_KD"]):
        return first["unit_KD"]
    share = SAMPLE * number / max(1, int(first["rows"]))
    seed, stage, device = ctx.worker.seed, ctx.worker.stage, ctx.worker.device

    def draw(state: State, turn: int) -> State:
        coins = partial(coin_hash, seed=seed, stage=stage, purpose=f"draw {turn}")
        keys = partial(far_drawn, state["centre_CD"], device, number, share, coins)
        found = ctx.reduce(keys, rows, partial(merge_drawn, number))
        if not len(found["unit_KD"]):  # which may say no width
            return state
        return {"centre_CD": np.concatenate([state["centre_CD"], found["unit_KD"]])}

    ctx.say("drawing candidates for the first centres")
    candidates = ctx.iterate({"centre_CD": first["unit_KD"][:1]}, draw, DRAWS)["centre_CD"]
    near = partial(near_counts, candidates, device, share)
    weight_C = ctx.reduce(near, rows, added)["count_C"]
    coin_K = step_coins(number, seed, stage, 0)
    return candidates[chosen(candidates, weight_C, coin_K)]


def far_drawn(
    centre_CD: NDArray, device: str, number: int, share: float, coins: partial, rows: pa.Table
) -> State:
    """The rows that a draw by squared distance to the nearest candidate takes."""
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
    """(K,) uniform in [0, 1): what decides each step of k-means++."""
    steps_K2 = np.stack([np.full(number, parent), np.arange(number)], axis=1).astype(np.uint64)
    return coin(from_halves(steps_K2), seed=seed, stage=stage, purpose="step")


def chosen(row_ND: NDArray, weight_N: NDArray, coin_K: NDArray) -> NDArray[np.int64]:
    """(K,) the rows that k-means++ takes; fewer where all others are equal to one of these.

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
    """The first centres among rows of one parent."""
    many = number if start == "sampled" else IN_MEMORY * number
    lowest = drawn(rows["coin"].to_numpy(), many, rows)["unit_KD"]
    if start == "sampled":
        return lowest
    coin_K = step_coins(number, seed, stage, parent + 1)
    return lowest[chosen(lowest, np.ones(len(lowest)), coin_K)]
