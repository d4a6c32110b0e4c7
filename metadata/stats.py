"""Estimates with their 95 % intervals; the noise of what models score, by its two sources.

A model's score would be another with another seed, and with other items in the task. `mean` and
`welch` add the two variances: that of independent seeds, and that part of the items' which all
seeds share, for a bootstrap of the items of seeds' mean would count the other part twice.

    variance = s²/S of each arm  +  C(a, a) + C(b, b) - 2 C(a, b)

s² is the variance of an arm's scores over its S seeds. C is the mean covariance, over draws of the
items, of two models that differ in their seed: of arm a, of arm b, and of one of each. Degrees of
freedom are Satterthwaite's, the items' part taken as known.

Source: Obuchowski and Rockette (1995) for readers and cases, who are seeds and items here, with
Welch's (1947) variances for seeds of different arms.
Error: 95 % intervals hold the truth in 93 to 98 % of simulated benches of 3 and 5 seeds
(tests/metadata/test_stats.py).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipmill.metadata.uid import mixed, uniform

# Shapes: N shares or items, S and R seeds of two arms, D draws, G groups of items; before them any
# others.

Z = 1.959963984540054  # of a two-sided 95 % interval
LEVEL = 0.95
POWER = 0.8  # with which a difference of the smallest visible size is found
DRAWS = 500  # of the items: a standard error of theirs is right to 3 %
SAME = 1e-7  # standard errors below it are none: rounding
POISSON_CDF = np.cumsum([math.exp(-1) / math.factorial(n) for n in range(16)])


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


@dataclass(frozen=True)
class Noisy:
    """A mean or a difference, with the variances that seeds and items give it.

    Of one or of many at once: all four have the same shape.
    """

    value: NDArray[np.float64]
    seeds: NDArray[np.float64]
    items: NDArray[np.float64]
    df: NDArray[np.float64]  # degrees of freedom of both together; infinite where items are all

    @property
    def error(self) -> NDArray[np.float64]:
        """The standard error."""
        return np.sqrt(self.seeds + self.items)

    def half(self, level: float = LEVEL) -> NDArray[np.float64]:
        """Half the width of its interval, Student's."""
        return student(self.df, (1 + level) / 2) * self.error

    @property
    def p(self) -> NDArray[np.float64]:
        """The chance of a value as far from 0 where the truth is 0; 1 for 0 without any noise."""
        from scipy.stats import t

        with np.errstate(divide="ignore", invalid="ignore"):
            far = np.where(self.value == 0, 0.0, np.abs(self.value) / self.error)
        return np.asarray(2 * t.sf(far, self.df), np.float64)

    def visible(self, comparisons: int = 1) -> NDArray[np.float64]:
        """The least difference that is found with a chance of 80 % among so many comparisons.

        Source: the usual sum of two quantiles, at Holm's first level, 0.05 / comparisons.
        """
        level = 1 - (1 - LEVEL) / max(1, comparisons)
        return (student(self.df, (1 + level) / 2) + student(self.df, POWER)) * self.error


def student(df: NDArray[np.float64], below: float) -> NDArray[np.float64]:
    """The value that Student's t is below with this chance."""
    from scipy.stats import t

    return np.asarray(t.ppf(below, df), np.float64)


def mean(value_S: NDArray[np.float64], draw_SD: NDArray[np.float64] | None) -> Noisy:
    """The mean over seeds, two at least: of an arm's scores, or of differences of pairs."""
    seeds = _of_seeds(value_S, draw_SD)
    items = np.zeros_like(seeds) if draw_SD is None else np.maximum(0.0, _shared(draw_SD))
    return _noisy(value_S.mean(-1), seeds, items, seeds**2 / (value_S.shape[-1] - 1))


def welch(
    a_S: NDArray[np.float64],
    b_R: NDArray[np.float64],
    a_SD: NDArray[np.float64] | None,
    b_RD: NDArray[np.float64] | None,
) -> Noisy:
    """The mean of the one arm's seeds less that of the other's, two at least of each.

    Draws are of the same items for both; without draws of either the items' part is 0.
    """
    of_a, of_b = _of_seeds(a_S, a_SD), _of_seeds(b_R, b_RD)
    items = np.zeros_like(of_a)
    if a_SD is not None and b_RD is not None:
        a_D, b_D = (of_SD.mean(-2) for of_SD in (a_SD, b_RD))
        both = ((a_D - a_D.mean(-1, keepdims=True)) * b_D).sum(-1) / (b_D.shape[-1] - 1)
        items = np.maximum(0.0, _shared(a_SD) + _shared(b_RD) - 2 * both)
    spread = of_a**2 / (a_S.shape[-1] - 1) + of_b**2 / (b_R.shape[-1] - 1)
    return _noisy(a_S.mean(-1) - b_R.mean(-1), of_a + of_b, items, spread)


def holm(p_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) the level at which each is found among all of them: below 0.05, no more than one page
    in twenty finds what is not there.

    Source: Holm (1979), step-down.
    """
    order_N = np.argsort(p_N, kind="stable")
    left_N = len(p_N) - np.arange(len(p_N))
    found_N = np.empty_like(p_N)
    found_N[order_N] = np.minimum(1.0, np.maximum.accumulate(p_N[order_N] * left_N))
    return found_N


def draw_weights(items: int, key: int, first: int, draws: int) -> NDArray[np.float32]:
    """(D, N) how often each item counts in some draws, from the first of them on; Poisson, mean 1.

    A pure function of key, item and draw. Source: the Poisson bootstrap (Oza and Russell 2001).
    """
    with np.errstate(over="ignore"):
        item_N = mixed(np.arange(items, dtype=np.uint64) ^ np.uint64(key))
        draw_D = mixed(np.arange(first, first + draws, dtype=np.uint64) + np.uint64(key))
        bits_DN = mixed(item_N + draw_D[:, None])
    return np.searchsorted(POISSON_CDF, uniform(bits_DN), "right").astype(np.float32)


def _of_seeds(
    value_S: NDArray[np.float64], draw_SD: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """The variance that seeds give their mean. Where all are equal to the digit, which few may be
    by chance, it is what the items that they do not share give."""
    seeds = value_S.shape[-1]
    spread = value_S.var(-1, ddof=1)
    if draw_SD is not None:
        alone = np.maximum(0.0, draw_SD.var(-1, ddof=1).mean(-1) - _shared(draw_SD))
        spread = np.where(spread > SAME**2, spread, alone)
    return np.asarray(np.where(spread > SAME**2, spread, 0.0) / seeds, np.float64)


def _shared(draw_SD: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean covariance of two different seeds over the draws."""
    seeds = draw_SD.shape[-2]
    every = draw_SD.sum(-2).var(-1, ddof=1) - draw_SD.var(-1, ddof=1).sum(-1)
    return np.asarray(every / (seeds * (seeds - 1)), np.float64)


def _noisy(
    value: NDArray[np.float64],
    seeds: NDArray[np.float64],
    items: NDArray[np.float64],
    spread: NDArray[np.float64],
) -> Noisy:
    items = np.where(items > SAME**2, items, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        df = np.where(spread > 0, (seeds + items) ** 2 / spread, np.inf)
    return Noisy(np.asarray(value), seeds, items, df)
