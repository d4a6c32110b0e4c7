"""Finds the most similar earlier vector of each vector: exact, in memory linear in their number.

Scores in float32 or bfloat16 only find the groups of GROUP columns that may hold a row's best one:
those whose best score comes within rounding of the row's. Float64 compares their columns.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clipmill.stages.ops.compiled import compiled
from clipmill.stages.ops.vectors.matrices import blocks

# Shapes: N vectors in order, U distinct ones of them, D their width; B rows of a block, C columns
# of a strip, G groups of columns; P pairs of a row and a group.

Precision = Literal["float32", "bfloat16"]
Scores = Callable[[slice, slice], NDArray[np.float32]]  # (C, B) of a strip and a block

GROUP = 8
BLOCK = 256  # rows: half of a block's own square is compared for nothing
STRIP = 8192  # columns: 8 MB of scores
HALF_BITS = 2.0**-8  # bfloat16 rounds by at most this share
FLOAT_BITS = 2.0**-24  # float32 by this


def most_similar_earlier(
    row_ND: NDArray[np.float32], precision: Precision = "float32"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Returns (N,) each vector's greatest cosine to one before it, and (N,) the first that has it.

    Both are -1 for the first vector. No vector may be zero or have a NaN. Equal to float64's
    cosines of all pairs, rounded to float32: `precision` changes the time, not the result.
    """
    length_N = _lengths(row_ND)
    place_U, kind_N = distinct(row_ND, length_N)
    if len(place_U) < len(row_ND):
        row_ND, length_N = row_ND[place_U], length_N[place_U]
    cosine_U, earlier_U = _of_distinct(row_ND, length_N, precision)
    earlier_U = np.where(earlier_U < 0, -1, place_U[earlier_U])
    # A copy has cosine 1 to the first of its kind, or to an earlier one if that has cosine 1 too.
    first_of_kind_U = np.where(cosine_U == 1, earlier_U, place_U)
    is_copy_N = place_U[kind_N] < np.arange(len(kind_N))
    cosine_N = np.where(is_copy_N, np.float32(1), cosine_U[kind_N])
    return cosine_N, np.where(is_copy_N, first_of_kind_U[kind_N], earlier_U[kind_N])


def distinct(
    row_ND: NDArray[np.float32], length_N: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns (U,) the first place of each distinct vector, ascending, and (N,) each one's kind."""
    if not row_ND.size:
        return np.arange(min(1, len(row_ND))), np.zeros(len(row_ND), np.int64)
    # Copies have equal lengths, to the bit, and few others do: few rows are compared whole.
    _, of_length_N, count = np.unique(length_N, return_inverse=True, return_counts=True)
    shared = np.flatnonzero(count[of_length_N] > 1)
    whole = np.dtype((np.void, row_ND.shape[1] * row_ND.itemsize))
    key = np.ascontiguousarray(row_ND[shared]).view(whole)[:, 0]
    _, first, kind = np.unique(key, return_index=True, return_inverse=True)
    first_N = np.arange(len(row_ND))
    first_N[shared] = shared[first[kind]]
    return np.unique(first_N, return_inverse=True)


def _of_distinct(row_UD, length_U, precision):
    """Returns each vector's greatest earlier cosine and its place, if no two vectors are equal."""
    U = len(row_UD)
    scores, gap = _coarse(row_UD, length_U, precision)
    cosine_U = np.full(U, -1, np.float32)
    earlier_U = np.full(U, -1, np.int64)
    for start in range(0, U, BLOCK):
        block = slice(start, min(start + BLOCK, U))
        best_GB = _group_maxima(scores, block)
        group_P, row_P = np.nonzero((best_GB >= best_GB.max(axis=0) - gap) & (best_GB > -np.inf))
        _decide(row_UD, length_U, group_P, start + row_P, GROUP, cosine_U, earlier_U)
    return cosine_U, earlier_U


def _coarse(row_UD, length_U, precision) -> tuple[Scores, np.float32]:
    """Returns scores of a strip's columns for the rows of a block, and the gap above which two
    scores of a row are in the right order: twice what one is off by.

    A float32 sum of D products of unit vectors is off by at most D * 2^-24 in any order; 4 * 2^-24
    cover the rounding of both vectors and of the cosine, 1.01 terms of second order.
    """
    U, D = row_UD.shape
    unit_UD = np.empty((U, D), np.float32)
    for part in blocks(U):
        np.divide(row_UD[part], length_U[part, None], out=unit_UD[part], casting="same_kind")
    off = (D + 4) * FLOAT_BITS
    if precision == "float32":
        return lambda strip, block: unit_UD[strip] @ unit_UD[block].T, np.float32(2 * 1.01 * off)
    import torch  # for bfloat16

    # With m the mean, ab is (a - m)(b - m) + am, and a term that is the same for all columns a. The
    # differences are at most 2 long, mostly below 1, and lose less to rounding.
    common_D = unit_UD.mean(axis=0)
    shift_U1 = torch.from_numpy(unit_UD @ common_D)[:, None]
    unit_UD -= common_D
    rest_UD = torch.from_numpy(unit_UD)
    half_UD = rest_UD.bfloat16()
    longest = float(rest_UD.norm(dim=1).max())
    lost = max(float((half_UD[p].float() - rest_UD[p]).norm(dim=1).max()) for p in blocks(U))

    def scores(strip: slice, block: slice) -> NDArray[np.float32]:
        return (half_UD[strip] @ half_UD[block].T).float().add_(shift_U1[strip]).numpy()

    # In float32 5 * off: a product up to 4, and am. In bfloat16: both factors, then the product.
    off = 5 * off + lost * (2 * longest + lost) + HALF_BITS * (longest + lost) ** 2
    return scores, np.float32(2 * 1.01 * off)


def _group_maxima(scores: Scores, block: slice) -> NDArray[np.float32]:
    """Returns (G, B) each row's best score in each group of columns, earlier columns only."""
    groups = -(-block.stop // GROUP)
    best_GB = np.empty((groups, block.stop - block.start), np.float32)
    for start in range(0, block.stop, STRIP):
        strip = slice(start, min(start + STRIP, block.stop))
        score_CB = scores(strip, block)
        own = max(start, block.start)
        if own < strip.stop:  # the block's own rows: only those before
            later_CB = np.arange(own, strip.stop)[:, None] >= np.arange(block.start, block.stop)
            score_CB[own - start :][later_CB] = -np.inf
        whole = len(score_CB) // GROUP * GROUP
        of_groups = best_GB[start // GROUP :]
        grouped = score_CB[:whole].reshape(-1, GROUP, score_CB.shape[1])
        grouped.max(axis=1, out=of_groups[: len(grouped)])
        if whole < len(score_CB):
            score_CB[whole:].max(axis=0, out=of_groups[len(grouped)])
    return best_GB


@compiled(fastmath={"reassoc", "contract"})  # to sum many values at a time
def _decide(row_UD, length_U, group_P, row_P, width, cosine_U, earlier_U):
    """Writes each row's greatest cosine in its groups, and the first column that has it."""
    for pair in range(len(row_P)):  # by ascending groups: of equal cosines the first stays
        row, begin = row_P[pair], group_P[pair] * width
        for column in range(begin, min(begin + width, row)):
            dot = 0.0
            for d in range(row_UD.shape[1]):
                dot += np.float64(row_UD[row, d]) * np.float64(row_UD[column, d])
            cosine = np.float32(dot / (length_U[row] * length_U[column]))
            cosine = min(max(cosine, np.float32(-1)), np.float32(1))
            if earlier_U[row] < 0 or cosine > cosine_U[row]:
                cosine_U[row], earlier_U[row] = cosine, column


def _lengths(row_ND) -> NDArray[np.float64]:
    length_N = np.empty(len(row_ND))
    for part in blocks(len(row_ND)):
        wide_BD = row_ND[part].astype(np.float64)  # squares of large float32 overflow in their own
        length_N[part] = np.sqrt(np.vecdot(wide_BD, wide_BD))
    return length_N
