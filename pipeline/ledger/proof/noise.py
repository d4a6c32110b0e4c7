"""The noise of models' scores, from seeds and from items.

A model's score varies with its seed and with the items of the task. `mean` and `welch` add two
variances: that of independent seeds, and the part of the items' variance which all seeds share. A
bootstrap of the items over the seeds' mean would count the unshared part twice.

    variance = s²/S of each arm  +  C(a, a) + C(b, b) - 2 C(a, b)

s² is the variance of an arm's scores over its S seeds. C is the mean covariance, over draws of the
items, of two models of different seeds: both of arm a, both of arm b, or one of each. Degrees of
freedom are Satterthwaite's, with the items' part taken as known.

Source: Obuchowski and Rockette (1995) for readers and cases (here seeds and items), with Welch's
(1947) variances for seeds of different arms.
Error: 95 % intervals hold the truth in 92 to 98 % of simulated benches of 3 and 5 seeds
(tests/pipeline/ledger/test_noise.py).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipmill.metadata.uid import mixed, uniform

# Shapes: N items, S and R seeds of two arms, D draws; other axes may come first.

LEVEL = 0.95
POWER = 0.8  # probability of finding a difference of the smallest visible size
DRAWS = 500  # bootstrap draws of the items: their standard error is right to 3 %
TINY = 1e-7  # standard errors below are rounding, taken as 0
POISSON_CDF = np.cumsum([math.exp(-1) / math.factorial(n) for n in range(16)])


@dataclass(frozen=True)
class Noisy:
    """A mean or difference, with its variances from seeds and items.

    Holds one value or many: all four arrays have the same shape.
    """

    value: NDArray[np.float64]
    seeds: NDArray[np.float64]
    items: NDArray[np.float64]
    df: NDArray[np.float64]  # of both together; infinite if only items vary

    @property
    def error(self) -> NDArray[np.float64]:
        """Returns the standard error."""
        return np.sqrt(self.seeds + self.items)

    def margin(self) -> NDArray[np.float64]:
        """Returns half the width of Student's 95 % interval."""
        return student(self.df, (1 + LEVEL) / 2) * self.error

    @property
    def p(self) -> NDArray[np.float64]:
        """Returns the two-sided p-value against 0; 1 for a value of 0 without noise."""
        from scipy.stats import t

        with np.errstate(divide="ignore", invalid="ignore"):
            far = np.where(self.value == 0, 0.0, np.abs(self.value) / self.error)
        return np.asarray(2 * t.sf(far, self.df), np.float64)

    def visible(self, comparisons: int = 1) -> NDArray[np.float64]:
        """Returns the minimum detectable effect at 80 % power, of `comparisons`.

        Source: the usual sum of two quantiles, at Holm's first level, 0.05 / comparisons.
        """
        level = 1 - (1 - LEVEL) / max(1, comparisons)
        return (student(self.df, (1 + level) / 2) + student(self.df, POWER)) * self.error


def student(df: NDArray[np.float64], below: float) -> NDArray[np.float64]:
    """Returns the quantile of Student's t at probability `below`."""
    from scipy.stats import t

    return np.asarray(t.ppf(below, df), np.float64)


def mean(value_S: NDArray[np.float64], draw_SD: NDArray[np.float64] | None) -> Noisy:
    """Returns the mean over two or more seeds, of an arm's scores or of paired differences."""
    seeds = _seed_variance(value_S, draw_SD)
    items = (
        np.zeros_like(seeds) if draw_SD is None else np.maximum(0.0, _shared_covariance(draw_SD))
    )
    return _noisy(value_S.mean(-1), seeds, items, seeds**2 / (value_S.shape[-1] - 1))


def welch(
    a_S: NDArray[np.float64],
    b_R: NDArray[np.float64],
    a_SD: NDArray[np.float64] | None,
    b_RD: NDArray[np.float64] | None,
) -> Noisy:
    """Returns the mean of arm a less that of arm b; each has two or more seeds.

    Both arms' draws are of the same items; without draws the items' part is 0.
    """
    var_a, var_b = _seed_variance(a_S, a_SD), _seed_variance(b_R, b_RD)
    items = np.zeros_like(var_a)
    if a_SD is not None and b_RD is not None:
        a_D, b_D = (of_SD.mean(-2) for of_SD in (a_SD, b_RD))
        cross = ((a_D - a_D.mean(-1, keepdims=True)) * b_D).sum(-1) / (b_D.shape[-1] - 1)
        items = np.maximum(0.0, _shared_covariance(a_SD) + _shared_covariance(b_RD) - 2 * cross)
    df_sum = var_a**2 / (a_S.shape[-1] - 1) + var_b**2 / (b_R.shape[-1] - 1)
    return _noisy(a_S.mean(-1) - b_R.mean(-1), var_a + var_b, items, df_sum)


def planned(
    variance: NDArray[np.float64], items: NDArray[np.float64], seeds: NDArray[np.float64]
) -> Noisy:
    """Returns the noise, around 0, of a difference of two arms of so many seeds each, before they
    are trained: `variance` is of a model's score by its seed, `items` of the difference.

    Two samples' variances differ by chance, which costs Welch's test degrees of freedom: here
    as by the median ratio of the greater to the smaller, the upper quartile of F.
    """
    from scipy.stats import f

    both = 2 * variance / seeds
    ratio = f.ppf(0.75, seeds - 1, seeds - 1)
    df_sum = both**2 * (1 + ratio**2) / (1 + ratio) ** 2 / (seeds - 1)
    return _noisy(np.zeros_like(both), both, items, df_sum)


def variance_bounds(variance: float, df: int) -> tuple[float, float]:
    """Returns the 95 % interval of a variance estimated with these degrees of freedom."""
    from scipy.stats import chi2

    low, high = df * variance / chi2.ppf([(1 + LEVEL) / 2, (1 - LEVEL) / 2], df)
    return float(low), float(high)


def holm(p_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns (N,) p-values adjusted for N tests, controlling the family-wise error rate.

    Source: Holm (1979), step-down.
    """
    order_N = np.argsort(p_N, kind="stable")
    left_N = len(p_N) - np.arange(len(p_N))
    adjusted_N = np.empty_like(p_N)
    adjusted_N[order_N] = np.minimum(1.0, np.maximum.accumulate(p_N[order_N] * left_N))
    return adjusted_N


def draw_weights(items: int, key: int, first: int, draws: int) -> NDArray[np.float32]:
    """Returns (D, N) bootstrap weights, Poisson(1), of items in `draws` draws from `first` on.

    A pure function of key, item and draw. Source: the Poisson bootstrap (Oza and Russell 2001).
    """
    with np.errstate(over="ignore"):
        item_N = mixed(np.arange(items, dtype=np.uint64) ^ np.uint64(key))
        draw_D = mixed(np.arange(first, first + draws, dtype=np.uint64) + np.uint64(key))
        bits_DN = mixed(item_N + draw_D[:, None])
    return np.searchsorted(POISSON_CDF, uniform(bits_DN), "right").astype(np.float32)


def _seed_variance(
    value_S: NDArray[np.float64], draw_SD: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """Returns the variance of the mean over seeds. If all scores are equal (with few seeds, by
    chance), uses the items' unshared variance."""
    seeds = value_S.shape[-1]
    variance = value_S.var(-1, ddof=1)
    if draw_SD is not None:
        unshared = np.maximum(0.0, draw_SD.var(-1, ddof=1).mean(-1) - _shared_covariance(draw_SD))
        variance = np.where(variance > TINY**2, variance, unshared)
    return np.asarray(np.where(variance > TINY**2, variance, 0.0) / seeds, np.float64)


def _shared_covariance(draw_SD: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the mean covariance of two different seeds over the draws."""
    seeds = draw_SD.shape[-2]
    every = draw_SD.sum(-2).var(-1, ddof=1) - draw_SD.var(-1, ddof=1).sum(-1)
    return np.asarray(every / (seeds * (seeds - 1)), np.float64)


def _noisy(
    value: NDArray[np.float64],
    seeds: NDArray[np.float64],
    items: NDArray[np.float64],
    df_sum: NDArray[np.float64],
) -> Noisy:
    """Returns the value and its noise; `df_sum` is the sum of seed variance squared over df."""
    items = np.where(items > TINY**2, items, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        df = np.where(df_sum > 0, (seeds + items) ** 2 / df_sum, np.inf)
    return Noisy(np.asarray(value), seeds, items, df)
