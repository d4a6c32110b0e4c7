"""Estimates with their 95 % intervals."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Z = 1.959963984540054  # of a two-sided 95 % interval


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval, which is null where one observation is all there is."""

    value: float
    low: float | None = None
    high: float | None = None


def wilson(share: float, trials: float) -> tuple[float, float]:
    """95 % interval of a share of independent trials, in [0, 1]; all of it without a trial.

    Source: Wilson (1927), which keeps inside 0 and 1 and has a width at both.
    """
    low, high = wilson_bounds(np.array([share]), np.array([trials]))
    return float(low[0]), float(high[0])


def wilson_bounds(
    share_N: NDArray[np.float64], trials_N: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N,) both bounds of the interval of each share, as `wilson` has them."""
    some_N = trials_N > 0
    n_N = np.where(some_N, trials_N, 1).astype(np.float64)
    spread_N = Z * np.sqrt(share_N * (1 - share_N) / n_N + Z**2 / (4 * n_N**2))
    centre_N, scale_N = share_N + Z**2 / (2 * n_N), 1 + Z**2 / n_N
    low_N = np.maximum(0.0, (centre_N - spread_N) / scale_N)
    high_N = np.minimum(1.0, (centre_N + spread_N) / scale_N)
    return np.where(some_N, low_N, 0.0), np.where(some_N, high_N, 1.0)


def auc(good: NDArray[np.float64], bad: NDArray[np.float64]) -> Estimate:
    """The chance that a good row scores above a bad one, ties half, in [0, 1].

    Source: Hanley and McNeil (1982), "The meaning and use of the area under a ROC curve".
    """
    ordered = np.sort(bad)
    below = (
        np.searchsorted(ordered, good, "left").sum() + np.searchsorted(ordered, good, "right").sum()
    )
    n, m = len(good), len(bad)
    area = float(below) / (2 * n * m)
    one, two = area / (2 - area), 2 * area**2 / (1 + area)
    spread = area * (1 - area) + (n - 1) * (two - area**2) + (m - 1) * (one - area**2)
    half = 1.96 * math.sqrt(spread / (n * m))  # not Z: stored answers have it so
    return Estimate(area, max(0.0, area - half), min(1.0, area + half))
