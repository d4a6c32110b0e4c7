"""Ranks that an evaluation stores, and their hit rates at k."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Shapes: N queries.

FEW_CLASSES = 12  # up to here top 1 counts: top 5 would be easy
NEVER = np.iinfo(np.int64).max  # rank of a query without a scored right answer: a hit at no k


@dataclass(frozen=True)
class Ranks:
    """The rank of each query's best right answer. Without ties the first field is enough.

    Answers without a score (a vector with NaN) come last; a query whose right answers have no score
    is a hit at no k.
    """

    better_N: NDArray[np.int64]  # answers that score better; NEVER if no right one has a score
    wrong_N: NDArray[np.int64] | int = 0  # wrong answers that score the same
    right_N: NDArray[np.int64] | int = 1  # right answers that score the same, with the best itself

    def hits(self, k: int) -> NDArray[np.float64]:
        """Returns (N,) the chance that a right answer is in the top k, ties in random order.

        0 or 1 without ties; the rate of guessing if all answers tie.
        """
        hit_N = (self.better_N < k).astype(np.float64)
        wrong_N, right_N = (
            np.broadcast_to(count_N, hit_N.shape) for count_N in (self.wrong_N, self.right_N)
        )
        tied = np.flatnonzero(hit_N * wrong_N)
        wrong_T, right_T = wrong_N[tied], right_N[tied]
        drawn_T = k - self.better_N[tied]  # answers drawn from the tied ones
        missed_T = np.ones(len(tied))  # C(wrong, drawn) / C(wrong + right, drawn)
        for i in range(1, int(right_T.max(initial=0)) + 1):
            left_T = np.maximum(wrong_T - drawn_T + i, 0)
            missed_T *= np.where(i <= right_T, left_T / (wrong_T + i), 1)
        hit_N[tied] = 1 - missed_T
        return hit_N


def prefix_of(card: str) -> str:
    """Returns the prefix of a model's files: `seed-3.` for `out/seed-3.model.json`."""
    return card.removeprefix("out/").removesuffix("model.json")
