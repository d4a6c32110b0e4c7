"""Finds the nearest of K centres for each row, as float64 decides; and sums rows by centre."""

import numpy as np
from numpy.typing import NDArray

from clipmill.stages.ops.vectors._coarse import (
    STRIP,
    Frame,
    Metric,
    Precision,
    Scores,
    best_precision,
    frame,
)

# Shapes: N rows, D width of a vector, K centres, m nearest (fewer if K is), U centres that no m
# before them equal; B rows of a block.

BLOCK = 256  # rows compared at a time


def nearest(
    row_ND: NDArray[np.float32],
    centre_KD: NDArray[np.float32],
    metric: Metric = "cosine",
    m: int = 1,
    precision: Precision | None = None,
    device: str = "cpu",
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Returns (N, m) the nearest centres, best first, and (N, m) dot products, or distances.

    Nearest is the greatest dot product for "cosine" and "dot" (for "cosine" both are at length 1),
    and for "euclidean" the least squared distance, which is then returned. Float64 decides, summing
    in one order on every machine; of equal ones the smaller index is first, for any batching of
    rows: float32 or bfloat16 only rules out what their rounding cannot make nearest. `precision`
    changes the time, not the result; None is the processor's best. The same on another `device` of
    torch, such as "cuda"; a GPU has not been tried. ValueError if a value is NaN or infinite.
    """
    index_Nm, sure_Nm = _nearest(row_ND, centre_KD, metric, m, precision, device, valued=True)
    value_Nm = -sure_Nm if metric == "euclidean" else sure_Nm
    with np.errstate(over="ignore"):  # products of large float32 are infinite in their own type
        return index_Nm, value_Nm.astype(np.float32)


def nearest_exact(
    row_ND: NDArray[np.float32], centre_KD: NDArray[np.float32], m: int
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Returns (N, m) the nearest centres by "cosine", as `nearest`, and products in float64.

    Products of several sets of centres can be compared.
    """
    return _nearest(row_ND, centre_KD, "cosine", m, None, "cpu", valued=True)


def nearest_centre(
    row_ND: NDArray[np.float32],
    centre_KD: NDArray[np.float32],
    metric: Metric = "cosine",
    precision: Precision | None = None,
    device: str = "cpu",
) -> NDArray[np.int32]:
    """Returns (N,) the index of the nearest centre, as `nearest` has it."""
    return _nearest(row_ND, centre_KD, metric, 1, precision, device, False)[0][:, 0]


def fixed_scale(largest: float, rows: int) -> float:
    """Returns the power of two that makes whole numbers of values, so that any sum is exact.

    `largest` is the greatest absolute value in all rows, `rows` their number: 2^33 of them leave
    the largest 29 bits, and 2^13 or fewer 49. Give both
    for the whole pool, so that its shards add up.
    """
    above = int(np.frexp(largest)[1])  # largest < 2^above
    return 2.0 ** (min(50, 63 - int(max(rows, 1) - 1).bit_length()) - above)


def sums_by_group(
    row_ND: NDArray[np.float32], index_N: NDArray[np.int32], groups: int, scale: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns (groups, D) sums of rows times `scale`, rounded to whole, and (groups,) row counts.

    No order of rows or shards changes a bit. `scale` is `fixed_scale`'s.
    """
    from clipmill.stages.ops.vectors._sift import add_rows

    count_K = np.bincount(index_N, minlength=groups)
    begin_K = np.append(0, np.cumsum(count_K))
    sum_KD = np.zeros((groups, row_ND.shape[1]), np.int64)
    order_N = np.argsort(index_N, kind="stable")  # a group's sum stays in the cache
    add_rows(_lent(row_ND), order_N, begin_K, scale, sum_KD)
    return sum_KD, count_K


def _nearest(row_ND, centre_KD, metric, m, precision, device, valued):
    """Returns (N, m) indices, and (N, m) float64 dot products or minus squared distances."""
    N, m = len(row_ND), max(1, min(m, len(centre_KD)))
    if not N:
        return np.empty((0, m), np.int32), np.empty((0, m))
    row_ND, centre_KD = _lent(row_ND), _lent(centre_KD)
    place_U = _few_copies(centre_KD, m)
    centre_UD = centre_KD if len(place_U) == len(centre_KD) else _lent(centre_KD[place_U])
    measures, is_distance = frame(centre_UD, metric), metric == "euclidean"
    if device != "cpu":
        from clipmill.stages.ops.vectors._on_device import nearest_on

        which_Nm, sure_Nm = nearest_on(
            device, row_ND, centre_UD, measures, precision or "bfloat16", m, is_distance
        )
    else:
        which_Nm, sure_Nm = _nearest_here(
            row_ND, centre_UD, measures, precision, m, is_distance, valued
        )
    return place_U[which_Nm], sure_Nm


def _lent(vector_ND) -> NDArray[np.float32]:
    """Returns the vectors read-only, as Arrow lends them: one type, so that loops compile once."""
    lent_ND = np.ascontiguousarray(vector_ND, np.float32).view()
    lent_ND.flags.writeable = False
    return lent_ND


def _nearest_here(row_ND, centre_UD, measures: Frame, precision, m, is_distance, valued):
    from clipmill.stages.ops.vectors._sift import GROUP, LANES, Pairs, nothing_near, settle, sift

    N = len(row_ND)
    which_Nm, sure_Nm = np.empty((N, m), np.int32), np.empty((N, m))
    scores = Scores(centre_UD, measures, best_precision(precision))
    best_GB, lane_S = np.empty((-(-STRIP // GROUP), BLOCK), np.float32), np.empty(LANES)
    for start in range(0, N, BLOCK):
        block = slice(start, start + BLOCK)
        pairs = Pairs(row_ND[block], centre_UD, is_distance, lane_S)
        ready_BD, ratio_B, gap_B, sure_gap_B = scores.block(pairs.row_BD)
        near = nothing_near(gap_B, sure_gap_B, m)
        for first, products in scores.strips:
            product_CB = products(ready_BD.T)
            weight_C = measures.weight_K[first : first + len(product_CB)]
            sift(product_CB, first, weight_C, ratio_B, best_GB, near, pairs)
        settle(near, pairs, valued)
        which_Nm[block], sure_Nm[block] = near.place_BM, near.sure_BM
    return which_Nm, sure_Nm


def _few_copies(centre_KD: NDArray[np.float32], m: int) -> NDArray[np.int32]:
    """Returns (U,) the centres, ascending, without those equal to m earlier ones: copies are as
    near to every row, and would all be compared in float64."""
    from clipmill.stages.ops.vectors._sift import lengths

    K, D = centre_KD.shape
    length_K = np.empty(K)
    lengths(centre_KD, np.zeros(D), length_K)
    # Copies have one length, to the bit, and few others share it: few are compared whole.
    _, kind_K, count = np.unique(length_K, return_inverse=True, return_counts=True)
    shared_S = np.flatnonzero(count[kind_K] > 1)
    keep_K = np.ones(K, bool)
    if len(shared_S) and D:
        whole_S = centre_KD[shared_S].view(np.dtype((np.void, D * centre_KD.itemsize)))[:, 0]
        _, kind_S, count = np.unique(whole_S, return_inverse=True, return_counts=True)
        order_S = np.argsort(kind_S, kind="stable")
        rank_S = np.arange(len(order_S)) - np.repeat(np.cumsum(count) - count, count)
        keep_K[shared_S[order_S[rank_S >= m]]] = False
    return np.flatnonzero(keep_K).astype(np.int32)
