"""Predicts from stored trainings which differences a bench of more seeds would see."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clipmill.metadata.stats import Estimate
from clipmill.metadata.storage import Storage
from clipmill.pipeline.bench.board import results_of, trained_arms
from clipmill.pipeline.bench.prepare import Prepared
from clipmill.pipeline.bench.spec import MOST_SEEDS
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.ledger.proof.noise import planned, variance_bounds
from clipmill.pipeline.ledger.proof.results import Results
from clipmill.pipeline.ledger.proof.trials import Arm
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.terminal import aligned, plural

SEEDS = 3, 5, 10, 20, 40
LEAST_SEEDS = 3  # of two the test sees less than is predicted
FEW = 10  # degrees of freedom; with fewer, noise may be 1.75 times what is predicted, or more


@dataclass(frozen=True, kw_only=True)
class Needed:
    """The seeds an arm that see a difference, and their interval; null above MOST_SEEDS."""

    difference: float
    seeds: int | None
    low: int | None
    high: int | None


@dataclass(frozen=True, kw_only=True)
class Power:
    """The noise of one metric in stored trainings, and what it lets a bench see.

    `seed_variance` is that of a model's score, pooled over arms, with `df` degrees of freedom;
    `items_variance` that of a difference by the task's items, the median over comparisons: null
    without stored ranks. `least` has the smallest difference seen four times in five by number of
    seeds an arm, `least_ever` that of endless seeds; `needed` is of the differences asked for. All
    intervals are the seed variance's 95 %.

    Error: takes all arms to vary alike, and later trainings as the stored ones.
    """

    metric: str
    trainings: int
    arms: int
    df: int
    comparisons: int
    seed_variance: float
    items_variance: float | None
    least: dict[int, Estimate]
    least_ever: float
    needed: tuple[Needed, ...]


def stored_results(prepared: Prepared, out: Storage) -> Results:
    """Returns the newest evaluations, of fewer seeds too than the bench has been promised since.

    Those of one seed are returned only if no arm has two.
    """
    recipe = prepared.plan.recipe
    arms: list[Arm] = []
    for seeds in range(prepared.bench.seeds, 0, -1):
        if seeds == 1 and arms:
            break
        stages = {
            name: keys | {"seeds": list(range(seeds))} if "seeds" in keys else keys
            for name, keys in recipe.stages.items()
        }
        found = trained_arms(prepared, RunState(make_plan(replace(recipe, stages=stages)), out))
        arms = found if len(found) > len(arms) else arms
        if len(arms) == len(prepared.arms):
            break
    return results_of(prepared, arms)


def power_of(results: Results, differences: Sequence[float]) -> Power:
    """Predicts for the metric that ranks the arms; StageError if no arm has two trainings.

    Arms that score alike in all metrics have the same models, which count once.
    """
    cells = results.shown[0].cells if results.shown else ()
    scores: dict[str, list[tuple[tuple[int, float], ...]]] = {}
    for metric in (*results.shown, *results.rows):
        for cell in metric.cells:
            scores.setdefault(cell.arm, []).append(cell.by_seed)
    models = {tuple(scores[cell.arm]): cell for cell in cells if cell.seeds > 1}.values()
    values = [[value for _, value in cell.by_seed] for cell in models]
    df = sum(len(scores) - 1 for scores in values)
    variance = float(sum(np.var(scores) * len(scores) for scores in values)) / max(1, df)
    if not variance:
        found = "nothing is trained and evaluated there yet"
        do = "train two seeds of each arm or more first: --seeds N in the place of --power"
        if cells:
            found = f"one training of each of {plural(len(cells), 'arm')}: no spread of seeds"
        if df:
            found = f"all seeds of each of {plural(len(cells), 'arm')} score the same: no spread"
            do = "give tasks of more pictures, --tasks DIR, or train longer"
        raise StageError(found, "clipmill bench --power", do)
    row = results.shown[0]
    page = cells if results.headline else [c for task in results.tasks for c in task.cells]
    comparisons = sum(comparison is not None for cell in page for comparison in cell.against)
    against = [comparison for cell in cells for comparison in cell.against if comparison]
    errors = [c.items_error for c in against if c.items_error is not None]
    items = float(np.median(errors)) ** 2 if errors else None
    bounds_3 = np.array([variance, *variance_bounds(variance, df)])

    def visible(seeds_N: NDArray[np.float64]) -> NDArray[np.float64]:
        every = np.broadcast_arrays(bounds_3[:, None], items or 0.0, seeds_N)
        return planned(*every).visible(comparisons)

    least_3N = visible(np.array(SEEDS, np.float64))
    by_seeds_3N = visible(np.arange(LEAST_SEEDS, MOST_SEEDS + 1.0))
    return Power(
        metric=f"{row.task} {row.metric}".rstrip(),
        trainings=sum(map(len, values)),
        arms=len(values),
        df=df,
        comparisons=comparisons,
        seed_variance=variance,
        items_variance=items,
        least={n: Estimate(*map(float, of_3)) for n, of_3 in zip(SEEDS, least_3N.T, strict=True)},
        least_ever=float(visible(np.array([1e9]))[0, 0]),
        needed=tuple(_needed(d, by_seeds_3N <= d) for d in differences),
    )


def _needed(difference: float, seen_3N: NDArray[np.bool_]) -> Needed:
    seeds, low, high = (
        int(seen_N.argmax()) + LEAST_SEEDS if seen_N.any() else None for seen_N in seen_3N
    )
    return Needed(difference=difference, seeds=seeds, low=low, high=high)


def text(power: Power) -> str:
    """Returns the prediction for a terminal, in points of 100."""
    rows = [("seeds an arm", "seen", "95 % of this prediction")]
    rows += [(str(seeds), *_points(least)) for seeds, least in power.least.items()]
    if power.items_variance is not None:
        rows += [("endless", *_points(Estimate(power.least_ever)))]
    parts = [
        f"{power.metric}, points of 100: the smallest difference seen four times in five among"
        f" {power.comparisons} comparisons, predicted from {power.trainings} trainings of"
        f" {power.arms} arms",
        *aligned(rows, {0, 1}),
    ]
    for needed in power.needed:
        found = (needed.seeds, needed.low, needed.high)
        seeds, low, high = (f"more than {MOST_SEEDS:,}" if n is None else str(n) for n in found)
        interval = f", {low} to {high}" if needed.low else ""
        parts.append(f"{100 * needed.difference:.1f} needs {seeds} seeds an arm{interval}")
    if power.items_variance is None:
        parts.append("no stored ranks: the noise of items comes on top")
    if power.df < FEW:
        parts.append(
            f"too few stored trainings for a narrow prediction: {power.df} degrees of freedom,"
            f" {FEW} would do"
        )
    return "\n".join(parts)


def _points(seen: Estimate) -> tuple[str, str]:
    """Returns the difference, and its interval if there is one."""
    if seen.low is None or seen.high is None:
        return f"{100 * seen.value:.1f}", "by the noise of items alone"
    return f"{100 * seen.value:.1f}", f"{100 * seen.low:.1f} to {100 * seen.high:.1f}"
