"""How far the centroid of each cluster lies from those around it."""

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipmill.pipeline.dataset import Context, Task
from clipmill.stages.ops.centroids import read
from clipmill.stages.ops.vectors import unit_rows

# Shapes: K centroids, D width of a vector, B centroids of a block, P pairs of one and a near one.

SCORES = 2**23  # (B, K) float32 products held at a time: 32 MB
PAIRS = 2**12  # products in float64 at a time: 50 MB at D = 768
BLOCKS = 256  # calls at most: each reads the centroids once
FIXED = 2.0**30


def isolation(
    folder: str | None, setting: str, neighbours: int, clusters: int, ctx: Context
) -> NDArray[np.float64]:
    """(K,) mean of 1 - cosine to the nearest other centroids, 0 to 2; NaN where there is none.

    Costs K * K products of width D, in blocks over the workers, each of which holds all centroids.
    """
    size = max(256, -(-clusters // BLOCKS))
    blocks = [[start, min(start + size, clusters)] for start in range(0, clusters, size)]
    where = f"stage '{ctx.worker.stage}'"
    found = ctx.map(partial(of_block, folder, setting, where, neighbours), blocks)
    whole = [value for block in found for value in block["isolation"]]
    return np.array([np.nan if value is None else value / FIXED for value in whole])


def of_block(
    folder: str | None, setting: str, where: str, neighbours: int, block: list[int], task: Task
) -> dict[str, Any]:
    """Those of the centroids start to stop, in fixed point; None where it is not defined."""
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
    """(B,) of the centroids start to stop; float32 rules out what is far, float64 decides."""
    none_K = np.isnan(unit_KD[:, 0])  # of a centroid without a direction
    near = min(neighbours, int((~none_K).sum()) - 1)
    value_B = np.full(stop - start, np.nan)
    row_B = np.flatnonzero(~none_K[start:stop])
    if near < 1 or not len(row_B):
        return value_B
    K, D = unit_KD.shape
    score_BK = unit_KD[start + row_B] @ np.where(none_K[:, None], np.float32(0), unit_KD).T
    score_BK[:, none_K] = -np.inf
    score_BK[np.arange(len(row_B)), start + row_B] = -np.inf  # itself
    gap = np.float32(2 * 1.01 * D * 2.0**-24)  # what rounding can hide, as in ops/_coarse.py
    last_B = np.partition(score_BK, K - near, axis=1)[:, K - near]
    row_P, other_P = np.nonzero(score_BK >= (last_B - gap)[:, None])
    cosine_P = np.empty(len(row_P))
    for at in range(0, len(row_P), PAIRS):
        pair = slice(at, at + PAIRS)
        one_PD = unit_KD[start + row_B[row_P[pair]]].astype(np.float64)
        cosine_P[pair] = np.vecdot(one_PD, unit_KD[other_P[pair]].astype(np.float64))
    order_P = np.lexsort((-cosine_P, row_P))
    first_B = np.searchsorted(row_P, np.arange(len(row_B)))
    nearest_BL = cosine_P[order_P][first_B[:, None] + np.arange(near)]
    value_B[row_B] = 1 - nearest_BL.mean(axis=1)
    return np.clip(value_B, 0, 2)
