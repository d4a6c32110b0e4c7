"""What models trained on the run's exports can do, arm against arm, and how their losses fell."""

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from clipmill.metadata.outputs import Outputs
from clipmill.metadata.stats import Estimate
from clipmill.pipeline.errors import RecipeError, did_you_mean
from clipmill.pipeline.ledger.proof.compare import Comparison, Scored, compare, judged
from clipmill.pipeline.ledger.proof.measured import Measured, mean_of, measured, telling
from clipmill.pipeline.ledger.proof.trials import Arm, arms
from clipmill.pipeline.ledger.rows.stored import artifacts
from clipmill.pipeline.run_folder.state import RunState

MOST_EPOCHS = 32  # above it a subset is learnt by heart


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One metric of one arm, and its difference to each baseline: null to itself, and where either
    has no value."""

    arm: str
    seeds: int
    result: Estimate | None
    against: tuple[Comparison | None, ...]
    near_chance: bool  # its interval, or its value without one, reaches down to chance


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """One metric of one task, of every arm. `chance` is its value by guessing, where known."""

    task: str
    metric: str
    chance: float | None
    cells: tuple[Cell, ...]

    @property
    def visible(self) -> float | None:
        """The least difference that this bench could have seen here: the median comparison's."""
        every = [one.visible for cell in self.cells for one in cell.against if one and one.visible]
        return float(np.median(every)) if every else None


@dataclass(frozen=True, kw_only=True)
class Results:
    """The arms, those that others are compared with, and every metric.

    The verdicts of `headline` hold among its own comparisons, those of `tasks` among all of both;
    other metrics in `rows` have none.
    """

    arms: tuple[str, ...]
    baselines: tuple[str, ...]
    epochs: dict[str, float | None]  # how often each arm saw a row; null where no card tells
    fine: dict[str, str]  # the tasks of the headline, and the metric of each
    headline: MetricRow | None  # their mean; null where no fine task has scored every model
    tasks: tuple[MetricRow, ...]  # one row a task, of its most telling metric; retrieval first
    rows: tuple[MetricRow, ...]

    @property
    def shown(self) -> list[MetricRow]:
        """The headline first, then the tasks."""
        return [*([self.headline] if self.headline else []), *self.tasks]

    @property
    def comparisons(self) -> list[Comparison]:
        """Those that have verdicts."""
        return [one for row in self.shown for cell in row.cells for one in cell.against if one]

    @property
    def worn(self) -> list[str]:
        """The arms that saw their rows too often."""
        return [arm for arm, seen in self.epochs.items() if seen and seen > MOST_EPOCHS]


@dataclass(frozen=True, kw_only=True)
class LossCurve:
    """The loss at each stored step of one model that a training stage made; `seed` is a text, empty
    where the stage makes one model."""

    stage: str
    uses: str
    seed: str
    step: tuple[int, ...]
    loss: tuple[float, ...]


def results(state: RunState, baselines: Sequence[str]) -> Results | None:
    """Every metric of every arm, with its difference to each baseline; None without an evaluation.

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
) -> Results:
    """The arms by task and metric, each against each baseline, or its own ones alone."""
    found = measured([trial for arm in every for trial in arm.trials])
    tasks, models = telling(found), sum(len(arm.trials) for arm in every)
    fine = [one for one in tasks if one.is_fine and len(one.models) == models]
    shown = [*([mean_of(fine)] if fine else []), *tasks]
    scored = {one.key: _scored(one, every) for one in [*shown, *found]}
    apart = {
        (key, arm, base): compare(arm, base, of[arm], of[base])
        for key, of in scored.items()
        for arm in of
        for base in baselines
        if arm != base and base in of and (against is None or base in against.get(arm, ()))
    }
    for page in (shown, shown[: 1 if fine else 0]):  # the headline's own: they come first
        keys = {one.key for one in page}
        at = [where for where in apart if where[0] in keys]
        apart |= dict(zip(at, judged([apart[where] for where in at]), strict=True))

    def row(one: Measured) -> MetricRow:
        cells = [
            Cell(
                arm=arm.name,
                seeds=len(of.value_S) if of else 0,
                result=of.estimate if of else None,
                against=tuple(apart.get((one.key, arm.name, base)) for base in baselines),
                near_chance=of is not None and _is_near(of.estimate, one.chance),
            )
            for arm in every
            for of in [scored[one.key].get(arm.name)]
        ]
        return MetricRow(task=one.task, metric=one.metric, chance=one.chance, cells=tuple(cells))

    rows = [row(one) for one in shown]
    return Results(
        arms=tuple(arm.name for arm in every),
        baselines=tuple(baselines),
        epochs={arm.name: arm.epochs for arm in every},
        fine={one.task: one.metric for one in fine},
        headline=rows[0] if fine else None,
        tasks=tuple(rows[1:] if fine else rows),
        rows=tuple(row(one) for one in found),
    )


def losses(state: RunState) -> list[LossCurve]:
    """The curve of every training that stores one."""
    curves = []
    for name, stage in state.stages.items():
        for prefix, file in artifacts(stage, "loss").items():
            table = pq.read_table(io.BytesIO(Outputs(stage.folder).read(file)))
            step, loss = (tuple(table[column].to_pylist()) for column in ("step", "loss"))
            seed = prefix.strip(".-").replace("-", " ")
            uses = stage.planned.uses
            curves.append(LossCurve(stage=name, uses=uses, seed=seed, step=step, loss=loss))
    return curves


def _scored(one: Measured, every: Sequence[Arm]) -> dict[str, Scored]:
    """What the models of each arm scored, of those that have the metric."""
    found, first = {}, 0
    for arm in every:
        place = {first + n: trial.seed for n, trial in enumerate(arm.trials)}
        first += len(arm.trials)
        at = [n for n, model in enumerate(one.models) if model in place]
        if at:
            found[arm.name] = Scored(
                seeds=tuple(place[one.models[n]] for n in at),
                value_S=one.value_S[at],
                draw_SD=None if one.draw_SD is None else one.draw_SD[at],
            )
    return found


def _is_near(result: Estimate, chance: float | None) -> bool:
    return chance is not None and (result.value if result.low is None else result.low) <= chance


def _arm_of(name: str, every: Sequence[Arm]) -> str:
    """The arm of this name, else the one that a stage of this name belongs to."""
    named = [arm.name for arm in every if name in arm.stages]
    if len(named) == 1 or name in {arm.name for arm in every}:
        return name if name in {arm.name for arm in every} else named[0]
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
