"""The most similar earlier vector of each: exact, in memory that grows with the vectors alone.

Float32 or bfloat16 only rules out: of columns in groups of GROUP, a row's best one lies in a group
whose own best comes within rounding of the row's. Those groups, mostly one, float64 decides.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

# Shapes: N vectors in order, U distinct ones of them, D their width; B rows of a block, C columns
# of a strip, G groups of columns; P pairs of a row and a group.

Precision = Literal["float32", "bfloat16"]
Scores = Callable[[slice, slice], NDArray[np.float32]]  # (C, B) of a strip and a block

GROUP = 16
BLOCK = 512  # rows
STRIP = 8192  # columns: 16 MB of scores
PAIRS = 2**20  # kept for float64 until there are so many
HALF_BITS = 2.0**-9  # bfloat16 rounds by at most this share
FLOAT_BITS = 2.0**-24  # float32 by this


def most_similar_earlier(
    row_ND: NDArray[np.float32], precision: Precision = "float32"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(N,) greatest cosine of each vector to one before it, and (N,) the first that has it.

    -1 and -1 for the first vector. No vector is zero or has a NaN. Equal to float64's cosines of
    all pairs, rounded to float32, whatever the precision: that says how fast, not what.
    """
    place_U, group_N = distinct(row_ND)
    cosine_U, earlier_U = _of_distinct(row_ND[place_U], precision)
    earlier_U = np.where(earlier_U < 0, -1, place_U[earlier_U])
    # A copy is as near as can be to the first of its kind, and to what that is as near to.
    first_of_kind_U = np.where(cosine_U == 1, earlier_U, place_U)
    is_copy_N = place_U[group_N] < np.arange(len(row_ND))
    cosine_N = np.where(is_copy_N, np.float32(1), cosine_U[group_N])
    return cosine_N, np.where(is_copy_N, first_of_kind_U[group_N], earlier_U[group_N])


def distinct(row_ND: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(U,) where each vector stands first, ascending, and (N,) which of those each one is."""
    if not row_ND.size:
        return np.arange(min(1, len(row_ND))), np.zeros(len(row_ND), np.int64)
    whole = np.dtype((np.void, row_ND.shape[1] * row_ND.itemsize))
    key_N = np.ascontiguousarray(row_ND).view(whole)[:, 0]
    _, place_U, kind_N = np.unique(key_N, return_index=True, return_inverse=True)
    order_U = np.argsort(place_U)
    number_U = np.empty_like(order_U)
    number_U[order_U] = np.arange(len(order_U))
    return place_U[order_U], number_U[kind_N]


def _of_distinct(row_UD, precision):
    """The same for vectors none of which is another's copy."""
    U = len(row_UD)
    length_U = _lengths(row_UD)
    scores, gap = _coarse(row_UD, length_U, precision)
    cosine_U = np.full(U, -1, np.float32)
    earlier_U = np.full(U, -1, np.int64)
    held: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    pairs = 0
    for start in range(0, U, BLOCK):
        block = slice(start, min(start + BLOCK, U))
        best_GB = _group_maxima(scores, block)
        group_P, row_P = np.nonzero((best_GB >= best_GB.max(axis=0) - gap) & (best_GB > -np.inf))
        held.append((group_P, start + row_P))
        pairs += len(row_P)
        if pairs > PAIRS or block.stop == U:
            group_P, row_P = map(np.concatenate, zip(*held, strict=True))
            _decide(row_UD, length_U, group_P, row_P, cosine_U, earlier_U)
            held, pairs = [], 0
    return cosine_U, earlier_U


def _coarse(row_UD, length_U, precision) -> tuple[Scores, np.float32]:
    """Cosines of a strip and a block, and how far two of them may be from their true order.

    A sum of D products in float32 is off by at most D * 2^-24 in any order, for unit vectors; so
    are their roundings, by 2^-24 or 2^-9 each. 1.01 covers the products of these.
    """
    U, D = row_UD.shape
    if precision == "float32":
        unit_UD = np.empty((U, D), np.float32)
        for part in _parts(U):
            unit_UD[part] = row_UD[part] / length_U[part, None]
        gap = 2 * 1.01 * (D + 2) * FLOAT_BITS
        return lambda strip, block: unit_UD[strip] @ unit_UD[block].T, np.float32(gap)
    import torch  # what knows bfloat16

    half_UD = torch.empty((U, D), dtype=torch.bfloat16)
    for part in _parts(U):
        unit_BD = (row_UD[part] / length_U[part, None]).astype(np.float32)
        half_UD[part] = torch.from_numpy(unit_BD).bfloat16()

    def scores(strip: slice, block: slice) -> NDArray[np.float32]:
        return (half_UD[strip] @ half_UD[block].T).float().numpy()

    # Two factors and, at last, the result are rounded to bfloat16.
    return scores, np.float32(2 * 1.01 * (3 * HALF_BITS + (D + 4) * FLOAT_BITS))


def _group_maxima(scores: Scores, block: slice) -> NDArray[np.float32]:
    """(G, B) the best score of each row of a block in each group of columns, earlier ones only."""
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


def _decide(row_UD, length_U, group_P, row_P, cosine_U, earlier_U) -> None:
    """Writes each row's greatest cosine in its groups, and the first column that has it."""
    order_P = np.lexsort((row_P, group_P))  # ascending groups: of equal cosines the first stays
    group_P, row_P = group_P[order_P], row_P[order_P]
    first = np.flatnonzero(np.diff(group_P, prepend=-1))
    for row in np.split(row_P, first[1:]) if len(row_P) else ():
        begin = group_P[first[0]] * GROUP
        first = first[1:]
        column = slice(begin, min(begin + GROUP, len(row_UD)))
        unit_CD = row_UD[column] / length_U[column, None]
        for part in _parts(len(row)):
            at = row[part]
            cosine_BC = ((row_UD[at] / length_U[at, None]) @ unit_CD.T).astype(np.float32)
            cosine_BC[np.arange(column.start, column.stop) >= at[:, None]] = -np.inf
            best_B = cosine_BC.argmax(axis=1)
            found_B = np.clip(cosine_BC[np.arange(len(at)), best_B], -1, 1)
            better = (found_B > cosine_U[at]) | (earlier_U[at] < 0)
            cosine_U[at[better]] = found_B[better]
            earlier_U[at[better]] = begin + best_B[better]


def _lengths(row_UD) -> NDArray[np.float64]:
    length_U = np.empty(len(row_UD))
    for part in _parts(len(row_UD)):
        wide_BD = row_UD[part].astype(np.float64)  # squares of large float32 overflow in their own
        length_U[part] = np.sqrt(np.vecdot(wide_BD, wide_BD))
    return length_U


def _parts(rows: int) -> list[slice]:
    """The rows, so many that a float64 copy of them is small."""
    return [slice(start, start + 4096) for start in range(0, rows, 4096)]
