"""Single linkage by looking at every pair at every height: what the stages are held to."""

import numpy as np
from numpy.typing import NDArray

# Shapes: N rows.


def linked(
    height_NN: NDArray, rank_N: NDArray, floor: float
) -> tuple[list[float | None], list[int | None]]:
    """Where each row's group first holds a better row, None for never; the best row at `floor`.

    height_NN is infinite where a pair has none. The lowest rank is the best row.
    """
    rows = len(rank_N)
    np.fill_diagonal(height_NN, -np.inf)
    joined: list[float | None] = [None] * rows
    best_N = np.arange(rows)
    for height in np.unique(height_NN[(height_NN > -np.inf) & (height_NN <= floor)]):
        best_N = best_of_group(height_NN <= height, rank_N)
        for row in np.flatnonzero(best_N != np.arange(rows)):
            joined[row] = float(height) if joined[row] is None else joined[row]
    return joined, [None if best == row else int(best) for row, best in enumerate(best_N)]


def best_of_group(is_near_NN: NDArray, rank_N: NDArray) -> NDArray:
    """(N,) the best row that each row reaches over near pairs."""
    rows = len(rank_N)
    rank_of_best_N = rank_N.copy()
    while True:
        seen_NN = np.where(is_near_NN, rank_of_best_N[None], rows)
        after_N = seen_NN.min(axis=1)
        if (after_N == rank_of_best_N).all():
            return np.argsort(rank_N)[rank_of_best_N]
        rank_of_best_N = after_N
