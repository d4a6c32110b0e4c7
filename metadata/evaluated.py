"""What an evaluation stores, for the stage that writes it and for whoever reads it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Shapes: N queries.

FEW_CLASSES = 12  # of which 5 are no feat: there top 1 counts
NEVER = np.iinfo(np.int64).max  # rank of what no answer is right for: a hit at no k


@dataclass(frozen=True)
class Ranks:
    """Where the best right answer of each query stands. Without ties the first field says it all.

    An answer without a score, as that of a vector with NaN in it, comes after all others; a query
    whose right answers have none is a hit at no k.
    """

    better_N: NDArray[np.int64]  # answers that score better; NEVER where no right one has a score
    wrong_N: NDArray[np.int64] | int = 0  # wrong answers that score the same
    right_N: NDArray[np.int64] | int = 1  # right answers that score the same, with the best itself

    def hits(self, k: int) -> NDArray[np.float64]:
        """(N,) chance that a right answer is among the k best, each order of ties as likely.

        0 or 1 without ties, and what guessing gives where all answers tie.
        """
        hit_N = (self.better_N < k).astype(np.float64)
        wrong_N, right_N = (np.broadcast_to(it, hit_N.shape) for it in (self.wrong_N, self.right_N))
        tied = np.flatnonzero(hit_N * wrong_N)
        wrong_T, right_T = wrong_N[tied], right_N[tied]
        drawn_T = k - self.better_N[tied]  # of those that tie
        missed_T = np.ones(len(tied))  # C(wrong, drawn) / C(wrong + right, drawn)
        for i in range(1, int(right_T.max(initial=0)) + 1):
            left_T = np.maximum(wrong_T - drawn_T + i, 0)
            missed_T *= np.where(i <= right_T, left_T / (wrong_T + i), 1)
        hit_N[tied] = 1 - missed_T
        return hit_N


def prefix_of(card: str) -> str:
    """What stands before the names of a model's files: `seed-3.` for `out/seed-3.model.json`."""
    return card.removeprefix("out/").removesuffix("model.json")
