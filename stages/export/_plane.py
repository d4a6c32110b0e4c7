"""A plane to draw vectors on, and which rows lie next to each other: sums without rounding.

Unit vectors are taken in whole steps, so a product of two is a whole number that float64 holds:
neither batches nor threads move a bit.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.pipeline.dataset import State

# Shapes: N rows, D width of a vector, B rows of a block, M rows that neighbours are sought among.

FINE = 2.0**26  # steps of 1: a product of two unit vectors is below 2^53
COARSE = 2.0**15  # steps of 1: the sum over 2^33 rows of such products fits into 64 bits
BLOCK_ROWS = 8192  # whose products are summed at a time
SCORES = 2**22  # (B, M) float64 products held at a time: 32 MB


def moments(unit_ND: NDArray[np.float32]) -> State:
    """How many rows, their sum, and the sum of their products by pairs of columns."""
    D = unit_ND.shape[1]
    sum_D, product_DD = np.zeros(D, np.int64), np.zeros((D, D), np.int64)
    for start in range(0, len(unit_ND), BLOCK_ROWS):
        step_BD = np.rint(unit_ND[start : start + BLOCK_ROWS].astype(np.float64) * COARSE)
        sum_D += step_BD.sum(axis=0).astype(np.int64)
        product_DD += (step_BD.T @ step_BD).astype(np.int64)
    return {"count": np.array(len(unit_ND)), "sum_D": sum_D, "product_DD": product_DD}


def plane_of(seen: State) -> NDArray[np.float64]:
    """(D + 1, 2) the two directions in which the rows spread most; last the rows' mean on each.

    Its columns have length 1, and their largest entry is positive; a direction that the rows do not
    have is 0.
    Source: principal components (Hotelling 1933).
    Error: entries are rounded to 2^-26; the moments are of vectors in steps of 2^-15.
    """
    count = max(1, int(seen["count"]))
    mean_D = seen["sum_D"].astype(np.float64) / (count * COARSE)
    spread_DD = seen["product_DD"].astype(np.float64) / (count * COARSE**2)
    spread_DD -= np.outer(mean_D, mean_D)
    axis_D2 = np.zeros((len(mean_D), 2))
    if len(mean_D):
        most_DE = np.linalg.eigh(spread_DD)[1][:, ::-1][:, :2]
        largest_E = most_DE[np.abs(most_DE).argmax(axis=0), np.arange(most_DE.shape[1])]
        axis_D2[:, : most_DE.shape[1]] = np.rint(most_DE * np.sign(largest_E) * FINE) / FINE
    return np.vstack([axis_D2, mean_D @ axis_D2])


def on_plane(unit_ND: NDArray[np.float32], plane_E2: NDArray[np.float64]) -> NDArray[np.float32]:
    """(N, 2) where each vector lies, from the mean of all."""
    if not len(unit_ND):  # perhaps of no width
        return np.empty((0, 2), np.float32)
    step_D2 = plane_E2[:-1] * FINE
    return (in_steps(unit_ND) @ step_D2 / FINE**2 - plane_E2[-1]).astype(np.float32)


def in_steps(unit_ND: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N, D) the vectors in whole steps."""
    return np.rint(unit_ND.astype(np.float64) * FINE)


def nearest_rows(unit_MD: NDArray[np.float32], row_M: NDArray[np.int64], k: int) -> pa.Array:
    """For each vector itself, then the `k` others with the greatest cosine: {ids, distances}.

    ids are rows, distances 1 - cosine, nearest first and of equals the first; rows rise. Where
    there are fewer, the row itself stands in their place, so that all lists have k + 1.
    """
    M = len(row_M)
    id_MK, distance_MK = np.repeat(row_M[:, None], k + 1, axis=1), np.zeros((M, k + 1), np.float32)
    k = max(0, min(k, M - 1))
    step_MD, block = in_steps(unit_MD), max(1, SCORES // max(1, M))
    for start in range(0, M if k else 0, block):
        score_BM = step_MD[start : start + block] @ step_MD.T
        B = len(score_BM)
        score_BM[np.arange(B), start + np.arange(B)] = -np.inf  # no row is its own neighbour
        least_B1 = np.partition(score_BM, M - k, axis=1)[:, M - k, None]
        above_BM = score_BM > least_B1
        equal_BM = score_BM == least_B1
        equal_BM &= np.cumsum(equal_BM, axis=1) <= k - above_BM.sum(axis=1, keepdims=True)
        near_Bk = np.nonzero(above_BM | equal_BM)[1].reshape(B, k)
        score_Bk = np.take_along_axis(score_BM, near_Bk, axis=1)
        order_Bk = np.argsort(-score_Bk, axis=1, kind="stable")
        id_MK[start : start + B, -k:] = row_M[np.take_along_axis(near_Bk, order_Bk, axis=1)]
        far_Bk = 1 - np.take_along_axis(score_Bk, order_Bk, axis=1) / FINE**2
        distance_MK[start : start + B, -k:] = np.maximum(far_Bk, 0)
    offsets = pa.array(np.arange(M + 1, dtype=np.int32) * id_MK.shape[1], pa.int32())
    ids, distances = pa.array(id_MK.ravel(), pa.int32()), pa.array(distance_MK.ravel())
    lists = [pa.ListArray.from_arrays(offsets, values) for values in (ids, distances)]
    return pa.StructArray.from_arrays(lists, ["ids", "distances"])
