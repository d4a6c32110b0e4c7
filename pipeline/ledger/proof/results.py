"""Compares models trained on the run's exports, arm by arm, and reads their loss curves."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clipmill.metadata.outputs import Outputs
from clipmill.metadata.stats import Estimate
from clipmill.pipeline.errors import RecipeError, did_you_mean
from clipmill.pipeline.ledger.proof.compare import Comparison, Scored, compare, judged, share
from clipmill.pipeline.ledger.proof.measured import Measured, main_metrics, mean_of, measured
from clipmill.pipeline.ledger.proof.trials import Arm, arms
from clipmill.pipeline.ledger.rows.stored import artifacts
from clipmill.pipeline.run_folder.state import RunState

MOST_EPOCHS = 32  # more epochs overfit a subset


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One metric of one arm, and its difference to each baseline; null to itself or if unknown.

    `share` is how far it is from the first baseline to the oracle, if that is told from it.
    """

    arm: str
    seeds: int
    by_seed: tuple[tuple[int, float], ...]  # each model's seed and value
    result: Estimate | None
    against: tuple[Comparison | None, ...]
    share: Estimate | None
    near_chance: bool  # the lower end of its interval, or its value, is at chance or below


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """One metric of one task, for every arm. `chance` is its value by guessing, if known."""

    task: str
    metric: str
    chance: float | None
    cells: tuple[Cell, ...]

    @property
    def visible(self) -> float | None:
        """Returns the least difference that this bench can detect: the median over comparisons."""
        differences = [
            comparison.visible
            for cell in self.cells
            for comparison in cell.against
            if comparison and comparison.visible
        ]
        return float(np.median(differences)) if differences else None


@dataclass(frozen=True, kw_only=True)
class Results:
    """The arms, the baselines, and every metric.

    Verdicts of `headline` are corrected over its own comparisons, those of `tasks` over all of
    both; other metrics in `rows` have none.
    """

    arms: tuple[str, ...]
    baselines: tuple[str, ...]
    epochs: dict[str, float | None]  # times that each arm saw a row; null without a card
    fine: dict[str, str]  # the tasks of the headline, and the metric of each
    headline: MetricRow | None  # their mean; null if no fine task has all models
    tasks: tuple[MetricRow, ...]  # the main metric of each task; retrieval first
    rows: tuple[MetricRow, ...]

    @property
    def shown(self) -> list[MetricRow]:
        """Returns the headline first, then the tasks."""
        return [*([self.headline] if self.headline else []), *self.tasks]

    @property
    def comparisons(self) -> list[Comparison]:
        """Returns the comparisons that have verdicts."""
        return [
            comparison
            for row in self.shown
            for cell in row.cells
            for comparison in cell.against
            if comparison
        ]

    @property
    def overfit(self) -> list[str]:
        """Returns the arms that saw their rows more than MOST_EPOCHS times."""
        return [arm for arm, seen in self.epochs.items() if seen and seen > MOST_EPOCHS]


@dataclass(frozen=True, kw_only=True)
class LossCurve:
    """The loss at each stored step of one model of a training stage.

    `seed` is text, empty if the stage trains one model.
    """

    stage: str
    uses: str
    seed: str
    step: tuple[int, ...]
    loss: tuple[float, ...]


def results(state: RunState, baselines: Sequence[str]) -> Results | None:
    """Returns every metric of every arm against each baseline; None without an evaluation.

    Without a name, the first arm of the recipe is the baseline.
    """
    every = arms(state)
    if not baselines and not every:
        return None
    chosen = [_arm_of(name, every) for name in baselines] or [every[0].name]
    return compared(every, chosen)


def compared(
    every: Sequence[Arm],
    baselines: Sequence[str],
    against: Mapping[str, Collection[str]] | None = None,
    oracle: str | None = None,
) -> Results:
    """Returns the arms by task and metric, each against all baselines, or those in `against`."""
    metrics = measured([trial for arm in every for trial in arm.trials])
    tasks, models = main_metrics(metrics), sum(len(arm.trials) for arm in every)
    fine = [metric for metric in tasks if metric.is_fine and len(metric.models) == models]
    shown = [*([mean_of(fine)] if fine else []), *tasks]
    scored = {metric.key: scores_of(metric, every) for metric in [*shown, *metrics]}
    apart = {
        (key, arm, base): compare(arm, base, by_arm[arm], by_arm[base])
        for key, by_arm in scored.items()
        for arm in by_arm
        for base in baselines
        if arm != base and base in by_arm and (against is None or base in against.get(arm, ()))
    }
    for page in (shown, shown[: 1 if fine else 0]):  # the headline's last: its own verdicts stay
        keys = {metric.key for metric in page}
        comparable = {key: comparison for key, comparison in apart.items() if key[0] in keys}
        apart |= dict(zip(comparable, judged([*comparable.values()]), strict=True))

    def share_of(arm: str, by_arm: Mapping[str, Scored]) -> Estimate | None:
        low, high = by_arm.get(baselines[0]), by_arm.get(oracle or "")
        if arm in (baselines[0], oracle) or arm not in by_arm or low is None or high is None:
            return None
        return share(by_arm[arm], low, high)

    def row(metric: Measured) -> MetricRow:
        cells = [
            Cell(
                arm=arm.name,
                seeds=len(score.value_S) if score else 0,
                by_seed=tuple(zip(score.seeds, score.value_S.tolist(), strict=True))
                if score
                else (),
                result=score.estimate if score else None,
                against=tuple(apart.get((metric.key, arm.name, base)) for base in baselines),
                share=share_of(arm.name, scored[metric.key]),
                near_chance=score is not None and _is_near(score.estimate, metric.chance),
            )
            for arm in every
            for score in [scored[metric.key].get(arm.name)]
        ]
        return MetricRow(
            task=metric.task, metric=metric.metric, chance=metric.chance, cells=tuple(cells)
        )

    rows = [row(metric) for metric in shown]
    return Results(
        arms=tuple(arm.name for arm in every),
        baselines=tuple(baselines),
        epochs={arm.name: arm.epochs for arm in every},
        fine={metric.task: metric.metric for metric in fine},
        headline=rows[0] if fine else None,
        tasks=tuple(rows[1:] if fine else rows),
        rows=tuple(row(metric) for metric in metrics),
    )


def losses(state: RunState) -> list[LossCurve]:
    """Returns the loss curve of every training that stores one."""
    curves = []
    for name, stage in state.stages.items():
        for prefix, file in artifacts(stage, "loss").items():
            with Outputs(stage.folder).parquet(file) as table:
                steps = table.read(["step", "loss"]).to_pydict()
            seed = prefix.strip(".-").replace("-", " ")
            columns = {column: tuple(values) for column, values in steps.items()}
            curves.append(LossCurve(stage=name, uses=stage.planned.uses, seed=seed, **columns))
    return curves


def scores_of(metric: Measured, every: Sequence[Arm]) -> dict[str, Scored]:
    """Returns the scores of each arm's models, without models that lack the metric."""
    scores, first = {}, 0
    for arm in every:
        seed_of = {first + n: trial.seed for n, trial in enumerate(arm.trials)}
        first += len(arm.trials)
        index = [n for n, model in enumerate(metric.models) if model in seed_of]
        if index:
            scores[arm.name] = Scored(
                seeds=tuple(seed_of[metric.models[n]] for n in index),
                value_S=metric.value_S[index],
                draw_SD=None if metric.draw_SD is None else metric.draw_SD[index],
            )
    return scores


def _is_near(result: Estimate, chance: float | None) -> bool:
    return chance is not None and (result.value if result.low is None else result.low) <= chance


def _arm_of(name: str, every: Sequence[Arm]) -> str:
    """Returns the arm of this name, else the only arm of the stage of this name."""
    named = [arm.name for arm in every if name in arm.stages]
    if name in [arm.name for arm in every]:
        return name
    if len(named) == 1:
        return named[0]
    if named:
        raise RecipeError(
            f"{len(named)} arms come from '{name}'", "--baseline", f"name one: {', '.join(named)}"
        )
    known = [word for arm in every for word in (arm.name, *arm.stages)]
    raise RecipeError(
        f"no evaluated model comes from '{name}'",
        "--baseline",
        did_you_mean(name, known, "arms and their stages")
        if known
        else "run an evaluate stage first",
    )
