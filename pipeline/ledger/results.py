"""What models trained on the run's exports can do, arm against arm, and how their losses fell.

An arm is one training stage on one dataset; its models differ in their seed. It bears the dataset's
name, and the training's behind it where the dataset has several. With two seeds or more the
interval is Student's over seeds, of differences that of pairs with equal seed: it holds the noise
of training. With one it is the evaluation's own, over its pictures, and a difference has none.
"""

import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from metadata.outputs import Outputs
from metadata.stats import Estimate
from pipeline.errors import RecipeError, did_you_mean
from pipeline.ledger.stored import artifacts, json_artifacts
from pipeline.run_folder.state import RunState

STUDENT = (  # two-sided 95 %, by degrees of freedom from 1
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)
HEADLINES = ("image_retrieval_recall@5", "acc5", "acc1")  # the first that a task has
Metric = tuple[str, str]  # task and metric
Arm = tuple[str, str]  # dataset and training; of an outside model, its evaluation twice


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One metric of one arm, and its difference to each baseline: null to itself and without pairs
    of equal seed."""

    arm: str
    seeds: int
    result: Estimate | None
    against: tuple[Estimate | None, ...]


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """One metric of one task, of every arm."""

    task: str
    metric: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class Results:
    """The arms, those that others are compared with, and every metric."""

    arms: tuple[str, ...]
    baselines: tuple[str, ...]
    rows: tuple[MetricRow, ...]

    @property
    def headlines(self) -> list[MetricRow]:
        """One row a task, of its most telling metric; retrieval first."""
        telling = []
        for task in dict.fromkeys(row.task for row in self.rows):
            of_task = {row.metric: row for row in self.rows if row.task == task}
            metric = next((name for name in HEADLINES if name in of_task), next(iter(of_task)))
            telling.append(of_task[metric])
        return sorted(telling, key=lambda row: row.metric != HEADLINES[0])


@dataclass(frozen=True, kw_only=True)
class LossCurve:
    """The loss at each stored step of one model that a training stage made; `seed` is a text, empty
    where the stage makes one model."""

    stage: str
    uses: str
    seed: str
    step: tuple[int, ...]
    loss: tuple[float, ...]


@dataclass(frozen=True)
class Trial:
    """One evaluated model: its arm, its seed, and every metric with its interval."""

    stages: tuple[str, ...]  # evaluation, model, export, what is exported
    seed: int
    metrics: dict[Metric, Estimate]

    @property
    def arm(self) -> Arm:
        _, *made = self.stages[:3]
        return (made[-1], made[0]) if made else (self.stages[0], self.stages[0])


def results(state: RunState, baselines: Sequence[str]) -> Results | None:
    """Every metric of every arm, with its difference to each baseline; None without an evaluation.

    Without a name, the first arm of the recipe is the baseline.
    """
    trials = [trial for name in state.stages for trial in _trials(state, name)]
    if not baselines and not trials:
        return None
    by_arm = _by_name(trials)
    chosen = [_arm_of(name, by_arm) for name in baselines] or list(by_arm)[:1]
    rows = []
    for task, metric in dict.fromkeys(key for trial in trials for key in trial.metrics):
        values = {arm: _values(of, (task, metric)) for arm, of in by_arm.items()}
        cells = []
        for arm, of in by_arm.items():
            result = over_seeds(list(values[arm].values()))
            if result and len(values[arm]) == 1:
                result = next(t.metrics[task, metric] for t in of if (task, metric) in t.metrics)
            against = [
                None
                if arm == base
                else over_seeds(
                    [values[arm][s] - values[base][s] for s in values[arm] if s in values[base]]
                )
                for base in chosen
            ]
            cells.append(
                Cell(arm=arm, seeds=len(values[arm]), result=result, against=tuple(against))
            )
        rows.append(MetricRow(task=task, metric=metric, cells=tuple(cells)))
    return Results(arms=tuple(by_arm), baselines=tuple(chosen), rows=tuple(rows))


def over_seeds(values: Sequence[float]) -> Estimate | None:
    """Mean, and the 95 % interval of the mean where there are two values or more."""
    if not values:
        return None
    mean = float(np.mean(values))
    if len(values) == 1:
        return Estimate(mean)
    student = STUDENT[len(values) - 2] if len(values) - 2 < len(STUDENT) else 2.09
    half = student * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


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


def _trials(state: RunState, name: str) -> list[Trial]:
    models = [
        model
        for stored in json_artifacts(state.stages[name], "results")
        for model in stored.get("models", [])
    ]
    stages = [name]
    model = state.plan.stages[name].model
    if model:
        stages.append(model)
        trained = state.plan.stages[model]
        if trained.data:  # an arm bears the name of the select that chose its rows, if one did
            kept_by = [trained.kept_by] if trained.kept_by else []
            stages += [*kept_by, trained.data, *state.plan.stages[trained.data].parents]
    return [Trial(tuple(stages), int(one["seed"]), _metrics(one["tasks"])) for one in models]


def _by_name(trials: list[Trial]) -> dict[str, list[Trial]]:
    """The trials of each arm: `raw`, or `raw/long` where `raw` was trained on more than once."""
    arms = list(dict.fromkeys(trial.arm for trial in trials))
    trained = Counter(data for data, _ in arms)
    return {
        data if trained[data] == 1 else f"{data}/{training}": [
            trial for trial in trials if trial.arm == (data, training)
        ]
        for data, training in arms
    }


def _metrics(tasks: dict[str, Any]) -> dict[Metric, Estimate]:
    return {
        (task, metric): Estimate(interval["value"], interval.get("low"), interval.get("high"))
        for task, result in tasks.items()
        for metric, interval in result.get("metrics", {}).items()
        if isinstance(interval, dict) and "value" in interval
    }


def _values(trials: list[Trial], key: Metric) -> dict[int, float]:
    return {trial.seed: trial.metrics[key].value for trial in trials if key in trial.metrics}


def _arm_of(name: str, by_arm: dict[str, list[Trial]]) -> str:
    """The arm of this name, else the one that a stage of this name belongs to."""
    named = [arm for arm, of in by_arm.items() if any(name in trial.stages for trial in of)]
    if name in by_arm or len(named) == 1:
        return name if name in by_arm else named[0]
    if named:
        raise RecipeError(
            f"{len(named)} arms come from '{name}'", "--baseline", f"name one: {', '.join(named)}"
        )
    known = [*by_arm, *(stage for of in by_arm.values() for trial in of for stage in trial.stages)]
    raise RecipeError(
        f"no evaluated model comes from '{name}'",
        "--baseline",
        did_you_mean(name, known, "arms and their stages")
        if known
        else "run an evaluate stage first",
    )
