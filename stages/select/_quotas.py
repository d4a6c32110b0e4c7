"""Computes how many rows of each cluster stay, for every total N at once.

A quota x_j(N) = clip(N * p_j + level, least_j(N), size_j), one level for all so that they sum to N,
is the nearest point to N * p within the bounds. With least_j(N) = min(share * N, size_j - 1, cap)
no quota falls as N grows, so the rows that stay at N stay at every larger N.

Proof that none falls. Divide by N: x_j / N = clip(p_j + level / N, least_j / N, size_j / N) sums to
1, and both bounds fall as N grows, so level / N rises. A cluster therefore leaves its least quota
once and reaches its size once. Between such events all is linear: for a clusters in between,
N * p_j + level = N * r_j - s / a, where s >= 0 sums what is constant (sizes reached, least quotas
at their cap). Since x_j >= 0, r_j >= s / (a * N) >= 0. A least quota of int(share * N), as
published, jumps in all clusters at once and takes rows from the others: then subsets do not nest.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipmill.stages.select._clustered import UNIT

# Shapes: K clusters with rows, E events, M pairs of a cluster and one of its rows.

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def probabilities(complexity_K: Floats, tau: float) -> Ints:
    """Returns (K,) softmax(complexity / tau) in units of 1 / UNIT; NaN counts as the mean."""
    known_K = ~np.isnan(complexity_K)
    if not known_K.all():
        mean = complexity_K[known_K].mean() if known_K.any() else 0.0
        complexity_K = np.where(known_K, complexity_K, mean)
    weight_K = np.exp((complexity_K - complexity_K.max(initial=-np.inf)) / tau)
    return np.rint(weight_K / weight_K.sum() * UNIT).astype(np.int64)


@dataclass(frozen=True)
class Quotas:
    """The quotas x_j(N) of all clusters, for every N from 0 to the number of rows."""

    share: float  # of N that a cluster has at least, up to its cap
    probability: Floats  # (K,)
    size: Floats  # (K,)
    cap: Floats  # (K,) the greatest least quota
    leaves_least: Floats  # (K,) the N at which it leaves its least quota
    reaches_size: Floats  # (K,) the N at which it reaches its size
    first: Ints  # (K,) the indices of these two events
    last: Ints  # (K,)
    event_at: Floats  # (E,) N; from one event to the next the level is slope * N + shift
    slope: Floats  # (E,)
    shift: Floats  # (E,)

    @classmethod
    def of(cls, p_K: Ints, size_K: Ints, balance: float) -> "Quotas":
        """Builds the quotas from probabilities in units of 1 / UNIT, and sizes of 1 row or more.

        The least quota is balance * N / K (one row if balance is 0), a row below the size at most.
        """
        from clipmill.stages.select._quota_path import events  # compiled: imported late

        share = (balance or 1.0) / max(1, len(p_K))
        cap_K = np.minimum(size_K - 1, size_K if balance else 1).astype(np.float64)
        path = events(p_K.astype(np.int64), size_K.astype(np.float64), cap_K, share)
        return cls(share, p_K / UNIT, size_K.astype(np.float64), cap_K, *path)

    def at(self, rows: float) -> Floats:
        """Returns (K,) the real-valued quotas at a total of `rows`."""
        event = np.searchsorted(self.event_at, rows, side="right") - 1
        between_K = self._between(self.probability, event, rows)
        least_K = np.minimum(self.share * rows, self.cap)
        between_K = np.clip(between_K, least_K, self.size)
        quota_K = np.where(rows < self.leaves_least, least_K, between_K)
        return np.where(rows < self.reaches_size, quota_K, self.size)

    def enters(self, cluster_M: Ints, rank_M: Ints) -> Floats:
        """Returns (M,) the N from which a row stays: the cluster's quota reaches rank - 1/2 there.

        `rank_M` are ranks of rows in their cluster, from 1 to the size.
        """
        quota_M = rank_M - 0.5
        p_M = self.probability[cluster_M]
        least_M = np.minimum(self.share * self.leaves_least, self.cap)[cluster_M]
        # Bisects for the last event, after leaving the least quota, where the quota is below.
        low_M, high_M = self.first[cluster_M], self.last[cluster_M]
        while (low_M + 1 < high_M).any():
            middle_M = (low_M + high_M) // 2
            at_M = self.event_at[middle_M]
            below_M = self._between(p_M, middle_M, at_M) < quota_M
            low_M, high_M = np.where(below_M, middle_M, low_M), np.where(below_M, high_M, middle_M)
        with np.errstate(divide="ignore", invalid="ignore"):
            rows_M = (quota_M - self.shift[low_M]) / (p_M + self.slope[low_M])
        rows_M = np.clip(rows_M, self.event_at[low_M], self.event_at[low_M + 1])
        return np.where(quota_M <= least_M, quota_M / self.share, rows_M)

    def _between(self, p_M: Floats, event_M: Any, rows_M: Any) -> Floats:
        return rows_M * (p_M + self.slope[event_M]) + self.shift[event_M]
