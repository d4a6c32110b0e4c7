"""Orders all rows, the furthest first, but with a turn for every cluster in time.

Rows have one global order, and within each cluster the same. One place in 1 / balance is a turn:
turn f = 1, 2 … belongs to row (f - 1) // K + 1 of cluster (f - 1) % K, and comes at the first place
N with balance * N >= f. A row without a place by its turn takes that place; every other place takes
the first row of the global order that has none. So for every N the first N places hold at least the
first balance * N / K rows, rounded down, of each cluster; the others are the first rows of all.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipmill.stages.ops.compiled import compiled

# Shapes: K clusters with rows, G groups of rows that follow each other, M rows of a group.

Ints = NDArray[np.int64]
SHIFT = 30  # balance in fixed point, rounded up: places up to 2^33 fit


@dataclass(frozen=True)
class Rounds:
    """The turns of clusters of these sizes, and the state in which each group of rows begins."""

    size: Ints  # (K,)
    balance: int  # << SHIFT
    passed: NDArray[np.int32]  # (G, K) rows of each cluster in the groups before
    places: Ints  # (G,) places that are taken before

    @classmethod
    def of(cls, rows_GK: NDArray[np.int32], balance: float) -> "Rounds":
        size_K = rows_GK.sum(axis=0, dtype=np.int64)
        fixed = int(np.ceil(balance * (1 << SHIFT)))
        passed_GK = np.cumsum(rows_GK, axis=0, dtype=np.int32) - rows_GK
        rounds = cls(size_K, fixed, passed_GK, np.zeros(len(rows_GK), np.int64))
        rounds.places[:] = [rounds._taken(passed_K) for passed_K in passed_GK]
        return rounds

    def turns(self, place: int) -> Ints:
        """Returns (K,) the rows of each cluster whose turn has come at a place."""
        released, K = place * self.balance >> SHIFT, len(self.size)
        return np.minimum((released - np.arange(K) - 1) // max(1, K) + 1, self.size)

    def _taken(self, passed_K: NDArray) -> int:
        """Returns the least number of places that hold all these rows of the global order."""
        first = int(passed_K.sum(dtype=np.int64))
        low, high = first - 1, int(self.size.sum())  # the rows that are ahead take the rest
        while low + 1 < high:
            middle = (low + high) // 2
            ahead = int(np.maximum(self.turns(middle) - passed_K, 0).sum())
            low, high = (low, middle) if middle - ahead >= first else (middle, high)
        return high

    def group_of(self, place: int) -> int:
        """Returns the last group that begins before a place."""
        return max(0, int(np.searchsorted(self.places, place)) - 1)

    def walk(self, group: int, cluster_M: Ints) -> tuple[Ints, Ints]:
        """Returns (M,) places of a group's rows, in global order, and their ranks by cluster."""
        passed_K = self.passed[group].astype(np.int64)
        return _walk(cluster_M, passed_K, self.places[group], self.size, self.balance)


@compiled()
def _walk(cluster_M, passed_K, place, size_K, balance):
    K = len(size_K)
    place_M, rank_M = np.empty(len(cluster_M), np.int64), np.empty(len(cluster_M), np.int64)
    released = place * balance >> SHIFT
    for m in range(len(cluster_M)):
        j = cluster_M[m]
        rank = passed_K[j] + 1
        turn = (rank - 1) * K + j + 1
        if turn <= released:  # its turn has come: the place of that turn
            place_M[m] = -((-turn << SHIFT) // balance)
        else:
            while True:
                place += 1
                now = place * balance >> SHIFT
                if now == released:
                    break
                released = now
                other, row = (now - 1) % K, (now - 1) // K + 1
                if row > size_K[other] or row <= passed_K[other] or now == turn:
                    break  # free: no row needs this turn, or it is this row's own
            place_M[m] = place
        passed_K[j] = rank_M[m] = rank
    return place_M, rank_M
