"""What models trained on the run's exports can do, arm against arm, and how their losses fell.

An arm is one training stage on one dataset; its models differ in their seed. It bears the dataset's
name, and the training's behind it where the dataset has several. With two seeds or more the
interval is Student's over seeds, of differences that of pairs with equal seed: it holds the noise
of training. With one it is the evaluation's own, over its pictures, and a difference has none.
"""

import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from metadata.outputs import Outputs
from pipeline.errors import RecipeError
from pipeline.recipe import nearest
from pipeline.state import RunState, StageState

RESULTS, LOSS = "results.json", "loss.parquet"
STUDENT = (  # two-sided 95 %, by degrees of freedom from 1
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)
HEADLINES = ("image_retrieval_recall@5", "acc5", "acc1")  # the first that a task has
Metric = tuple[str, str]  # task and metric
Arm = tuple[str, str]  # dataset and training; of an outside model, its evaluation twice


@dataclass(frozen=True)
class Trial:
    """One evaluated model: its arm, its seed, and every metric with its interval."""

    stages: tuple[str, ...]  # evaluation, model, export, what is exported
    seed: int
    metrics: dict[Metric, dict[str, float]]

    @property
    def arm(self) -> Arm:
        _, *made = self.stages[:3]
        return (made[-1], made[0]) if made else (self.stages[0], self.stages[0])


def results(state: RunState, baselines: Sequence[str]) -> dict[str, Any] | None:
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
            spread = over_seeds(list(values[arm].values()))
            if spread and len(values[arm]) == 1:
                spread = next(t.metrics[task, metric] for t in of if (task, metric) in t.metrics)
            differences = [
                over_seeds(
                    [values[arm][s] - values[base][s] for s in values[arm] if s in values[base]]
                )
                for base in chosen
            ]
            cells.append(
                {
                    "arm": arm,
                    "seeds": len(values[arm]),
                    "found": spread,
                    "against": [
                        None if arm == base else difference
                        for base, difference in zip(chosen, differences, strict=True)
                    ],
                }
            )
        rows.append({"task": task, "metric": metric, "cells": cells})
    return {"arms": list(by_arm), "baselines": chosen, "headlines": headlines(rows), "rows": rows}


def headlines(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a task, of its most telling metric; retrieval first."""
    found = []
    for task in dict.fromkeys(row["task"] for row in rows):
        of_task = {row["metric"]: row for row in rows if row["task"] == task}
        metric = next((name for name in HEADLINES if name in of_task), next(iter(of_task)))
        found.append(of_task[metric])
    return sorted(found, key=lambda row: row["metric"] != HEADLINES[0])


def headline(found: dict[str, Any]) -> str:
    """One metric a task as a table in text: every arm, and its difference to the first baseline."""
    rows = headlines(found["rows"])
    base, arms = found["baselines"][0], found["arms"]
    seeds = {cell["seeds"] for row in rows for cell in row["cells"]}
    told = " to ".join(map(str, sorted({min(seeds), max(seeds)})))
    others = [arm for arm in arms if arm != base]
    head = ["in points of 100", "", *arms, *(f"{arm} - {base}" for arm in others)]
    lines = [head]
    for row in rows:
        by_arm = {cell["arm"]: cell for cell in row["cells"]}
        means = [_points(by_arm[arm]["found"], "") for arm in arms]
        apart = [_points(by_arm[arm]["against"][0], "+") for arm in others]
        lines.append([row["task"], row["metric"], *means, *apart])
    width = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = [
        "  ".join(
            cell.ljust(width[i]) if i < 2 else cell.rjust(width[i]) for i, cell in enumerate(line)
        ).rstrip()
        for line in lines
    ]
    pairs = "; a difference is of pairs with equal seed, with its 95 % interval" if others else ""
    return "\n".join([*text, f"seeds an arm: {told}{pairs}"])


def _points(interval: dict[str, float] | None, sign: str) -> str:
    if interval is None:
        return ""
    value = f"{100 * interval['value']:{sign}.1f}"
    if not sign or "low" not in interval:
        return value
    return f"{value} ({100 * interval['low']:+.1f} to {100 * interval['high']:+.1f})"


def over_seeds(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, and the 95 % interval of the mean where there are two values or more."""
    if not values:
        return None
    mean = float(np.mean(values))
    if len(values) == 1:
        return {"value": mean}
    student = STUDENT[len(values) - 2] if len(values) - 2 < len(STUDENT) else 2.09
    half = student * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return {"value": mean, "low": mean - half, "high": mean + half}


def losses(state: RunState) -> list[dict[str, Any]]:
    """Step and loss of every training whose curve is stored."""
    found = []
    for name, stage in state.stages.items():
        for file in _outputs(stage):
            if not file.endswith(LOSS):
                continue
            table = pq.read_table(io.BytesIO(Outputs(stage.folder).read(file)))
            if {"step", "loss"} <= set(table.column_names):
                columns = {column: table[column].to_pylist() for column in ("step", "loss")}
                seed = file.removesuffix(LOSS).strip(".-").replace("-", " ")
                found.append({"stage": f"{name} {seed}".strip(), **columns})
    return found


def _trials(state: RunState, name: str) -> list[Trial]:
    stage = state.stages[name]
    if RESULTS not in _outputs(stage):
        return []
    held = json.loads(Outputs(stage.folder).read(RESULTS))
    stages = [name]
    model = state.plan.stages[name].model
    if model:
        stages.append(model)
        if exported := state.plan.stages[model].data:
            stages += [exported, *state.plan.stages[exported].parents]
    return [
        Trial(tuple(stages), int(one["seed"]), _metrics(one["tasks"]))
        for one in held.get("models", [])
    ]


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


def _metrics(tasks: dict[str, Any]) -> dict[Metric, dict[str, float]]:
    return {
        (task, metric): interval
        for task, said in tasks.items()
        for metric, interval in said.get("metrics", {}).items()
        if isinstance(interval, dict) and "value" in interval
    }


def _outputs(stage: StageState) -> list[str]:
    """The files in a complete stage's out/."""
    return Outputs(stage.folder).names if stage.complete else []


def _values(trials: list[Trial], key: Metric) -> dict[int, float]:
    return {trial.seed: trial.metrics[key]["value"] for trial in trials if key in trial.metrics}


def _arm_of(name: str, by_arm: dict[str, list[Trial]]) -> str:
    """The arm of this name, else the one that a stage of this name belongs to."""
    found = [arm for arm, of in by_arm.items() if any(name in trial.stages for trial in of)]
    if name in by_arm or len(found) == 1:
        return name if name in by_arm else found[0]
    if found:
        raise RecipeError(
            f"{len(found)} arms come from '{name}'", "--baseline", f"name one: {', '.join(found)}"
        )
    known = [*by_arm, *(stage for of in by_arm.values() for trial in of for stage in trial.stages)]
    raise RecipeError(
        f"no evaluated model comes from '{name}'",
        "--baseline",
        f"did you mean '{nearest(name, known)}'?" if known else "run an evaluate stage first",
    )
