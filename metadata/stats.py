"""Estimates with 95 % intervals: of shares, and of areas under ROC curves."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Shapes: N shares.

Z = 1.959963984540054  # of a two-sided 95 % interval


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval; the interval is null for a single observation."""

    value: float
    low: float | None = None
    high: float | None = None


def wilson(share: float, trials: float) -> tuple[float, float]:
    """Returns the 95 % interval of a share of independent trials; (0, 1) without a trial.

    Source: Wilson (1927), which stays inside [0, 1] and has a width at both ends.
    """
    low, high = wilson_bounds(np.array([share]), np.array([trials]))
    return float(low[0]), float(high[0])


def wilson_bounds(
    share_N: NDArray[np.float64], trials_N: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns (N,) low and high of each share's interval, as `wilson`."""
    has_trials_N = trials_N > 0
    n_N = np.where(has_trials_N, trials_N, 1).astype(np.float64)
    margin_N = Z * np.sqrt(share_N * (1 - share_N) / n_N + Z**2 / (4 * n_N**2))
    centre_N, scale_N = share_N + Z**2 / (2 * n_N), 1 + Z**2 / n_N
    low_N = np.maximum(0.0, (centre_N - margin_N) / scale_N)
    high_N = np.minimum(1.0, (centre_N + margin_N) / scale_N)
    return np.where(has_trials_N, low_N, 0.0), np.where(has_trials_N, high_N, 1.0)


def auc(good: NDArray[np.float64], bad: NDArray[np.float64]) -> Estimate:
    """Estimates the chance that a good row scores above a bad one, ties half, in [0, 1].

    Source: Hanley and McNeil (1982), "The meaning and use of the area under a ROC curve".
    """
    ordered = np.sort(bad)
    below = sum(np.searchsorted(ordered, good, side).sum() for side in ("left", "right"))
    n, m = len(good), len(bad)
    area = float(below) / (2 * n * m)
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    scaled = area * (1 - area) + (n - 1) * (q2 - area**2) + (m - 1) * (q1 - area**2)
    margin = 1.96 * math.sqrt(scaled / (n * m))  # not Z: stored answers were made with 1.96
    return Estimate(area, max(0.0, area - margin), min(1.0, area + margin))
