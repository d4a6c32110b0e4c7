"""Compares the models of two arms: the difference, its interval, and whether it beats the noise.

A difference carries the noise of seeds and that of a task's items (noise.py says how both
add up). The interval is Welch's; if seeds pair, that of pairs stands beside it. Verdicts are
corrected over all comparisons of a page (Holm). With one seed per arm no interval is claimed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clipmill.metadata.stats import Estimate
from clipmill.pipeline.ledger.proof.noise import LEVEL, TINY, Noisy, holm, mean, student, welch

# Shapes: S models of an arm, D draws of a task's items.

Verdict = Literal["better", "worse", "none", "unclaimed"]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One metric of an arm's models, and its value on each draw of the items."""

    seeds: tuple[int, ...]
    value_S: NDArray[np.float64]
    draw_SD: NDArray[np.float64] | None = None  # None without stored ranks

    @property
    def estimate(self) -> Estimate:
        """Returns the mean; with its interval if there are two models or more."""
        value = float(self.value_S.mean())
        if len(self.value_S) < 2:
            return Estimate(value)
        return _estimate(mean(self.value_S, self.draw_SD))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """`arm` against `baseline`, in the metric's unit.

    `low` and `high` of `apart` are Welch's 95 % interval; they and all later fields are null if no
    interval is claimed. `why` is the reason, or what the interval lacks. `seeds_error` and
    `items_error` are standard errors, which add as squares; the second is null without stored
    ranks. `df`, the degrees of freedom, is also null if items are all the noise. `visible` is the
    least difference found with a power of 80 % among the page's comparisons. `level` is Holm's
    adjusted p: significant below 0.05.
    """

    arm: str
    baseline: str
    seeds: tuple[int, int]
    apart: Estimate
    why: str = ""
    paired: Estimate | None = None
    seeds_error: float | None = None
    items_error: float | None = None
    df: float | None = None
    level: float | None = None
    visible: float | None = None

    @property
    def verdict(self) -> Verdict:
        if self.apart.low is None or self.level is None:
            return "unclaimed"
        if self.level >= 1 - LEVEL:
            return "none"
        return "better" if self.apart.value > 0 else "worse"

    @property
    def half(self) -> float | None:
        """Returns half the width of the interval."""
        return None if self.apart.high is None else self.apart.high - self.apart.value

    @property
    def short(self) -> str:
        """Returns the verdict for use beside the figures."""
        if self.verdict == "unclaimed":
            return self.words
        verdicts = {"better": f"beats {self.baseline}", "worse": f"{self.baseline} beats it"}
        return verdicts.get(self.verdict, "no difference")

    @property
    def words(self) -> str:
        """Returns the verdict as a sentence, in points of 100."""
        points = f"{100 * abs(self.apart.value):.1f}"
        if self.verdict == "unclaimed" or self.half is None:
            return f"{self.why}: no interval is claimed"
        points += f" ± {100 * self.half:.1f}"
        beyond = f", by the noise of items alone: {self.why}" if self.why else ""
        if self.verdict == "none":
            return "no difference"
        both = (self.arm, self.baseline) if self.verdict == "better" else (self.baseline, self.arm)
        return f"{' beats '.join(both)} by {points}{beyond}"


def compare(arm: str, baseline: str, a: Scored, b: Scored) -> Comparison:
    """Returns the difference of two arms, without a verdict until `judged` adds it."""
    value = float(a.value_S.mean() - b.value_S.mean())
    comparison = Comparison(
        arm=arm, baseline=baseline, seeds=(len(a.seeds), len(b.seeds)), apart=Estimate(value)
    )
    if min(comparison.seeds) < 2:
        return replace(comparison, why="one seed")
    has_items = a.draw_SD is not None and b.draw_SD is not None
    apart = welch(a.value_S, b.value_S, a.draw_SD, b.draw_SD)
    alike = min(np.ptp(scored.value_S) for scored in (a, b)) < TINY
    if not apart.error or (alike and not has_items):
        return replace(comparison, why="seeds equal to the digit")
    return replace(
        comparison,
        apart=_estimate(apart),
        why="" if apart.seeds else "seeds equal to the digit",
        paired=_paired(a, b),
        seeds_error=float(np.sqrt(apart.seeds)),
        items_error=float(np.sqrt(apart.items)) if has_items else None,
        df=float(apart.df) if np.isfinite(apart.df) else None,
    )


def share(arm: Scored, low: Scored, high: Scored) -> Estimate | None:
    """Returns how far an arm is on the way between two others: 0 at `low`'s mean, 1 at `high`'s.

    The 95 % interval holds the noise of all three arms. None with one seed of any, or where `high`
    is not told from `low`.

    Source: Fieller (1954), with the variances of `welch`.
    """
    models = arm, low, high
    if min(len(scored.seeds) for scored in models) < 2:
        return None
    noise = [mean(scored.value_S, scored.draw_SD) for scored in models]
    seeds_3, items_3 = np.array([(noisy.seeds, noisy.items) for noisy in noise], float).T
    draws = [scored.draw_SD.mean(0) for scored in models if scored.draw_SD is not None]
    variance_33 = np.cov(draws) if len(draws) == len(models) else np.zeros((3, 3))
    # At least the draws' own variance, or a contrast's could be below 0.
    np.fill_diagonal(variance_33, np.maximum(seeds_3 + items_3, variance_33.diagonal()))
    rise, gain = (float(scored.value_S.mean() - low.value_S.mean()) for scored in (arm, high))
    value = rise / gain if gain else np.nan
    # The interval has each x whose contrast `arm - low - x * (high - low)` is not told from 0. Its
    # ends are the roots of a * x^2 + 2 * b * x + c; the degrees of freedom are those at `value`.
    arm_3, way_3 = np.array([1.0, -1.0, 0.0]), np.array([0.0, 1.0, -1.0])
    contrast_3 = arm_3 + value * way_3
    models_3 = np.array([len(scored.seeds) for scored in models])
    df_sum = ((contrast_3**2 * seeds_3) ** 2 / (models_3 - 1)).sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        df = (contrast_3 @ variance_33 @ contrast_3) ** 2 / df_sum
    t2 = float(student(df, (1 + LEVEL) / 2)) ** 2
    a = gain**2 - t2 * way_3 @ variance_33 @ way_3
    b = -rise * gain - t2 * arm_3 @ variance_33 @ way_3
    c = rise**2 - t2 * arm_3 @ variance_33 @ arm_3
    if not a > 0:
        return None
    half = np.sqrt(b**2 - a * c)
    return Estimate(value, (-b - half) / a, (-b + half) / a)


def judged(page: Sequence[Comparison]) -> list[Comparison]:
    """Returns a page's comparisons with their adjusted levels and visible differences."""
    claimed = [n for n, comparison in enumerate(page) if comparison.seeds_error is not None]
    noisy = Noisy(
        value=np.array([page[n].apart.value for n in claimed]),
        seeds=np.array([(page[n].seeds_error or 0) ** 2 for n in claimed]),
        items=np.array([(page[n].items_error or 0) ** 2 for n in claimed]),
        df=np.array([page[n].df or np.inf for n in claimed]),
    )
    comparisons = list(page)
    for n, level, visible in zip(claimed, holm(noisy.p), noisy.visible(len(claimed)), strict=True):
        comparisons[n] = replace(comparisons[n], level=float(level), visible=float(visible))
    return comparisons


def _paired(a: Scored, b: Scored) -> Estimate | None:
    """Returns the mean difference of pairs with equal seeds; None below two, or without noise."""
    shared = [seed for seed in a.seeds if seed in b.seeds]
    if len(shared) < 2 or len(set(a.seeds)) < len(a.seeds) or len(set(b.seeds)) < len(b.seeds):
        return None
    index_a, index_b = ([scored.seeds.index(seed) for seed in shared] for scored in (a, b))
    draws = None
    if a.draw_SD is not None and b.draw_SD is not None:
        draws = a.draw_SD[index_a] - b.draw_SD[index_b]
    noisy = mean(a.value_S[index_a] - b.value_S[index_b], draws)
    return _estimate(noisy) if noisy.error else None


def _estimate(noisy: Noisy) -> Estimate:
    """Returns the value and its interval; no interval if the noise is 0, as few models may show."""
    value, margin = float(noisy.value), float(noisy.margin())
    return Estimate(value, value - margin, value + margin) if noisy.error else Estimate(value)
