"""Groups the evaluated models of a run into arms: rows and training settings.

Trainings with different settings or rows are different arms, whose names state the difference.
Trainings that differ only in their seeds are one arm, and so are all models of an external
checkpoint. A seed that was trained twice counts once.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from clipmill.metadata.evaluated import prefix_of
from clipmill.metadata.fingerprint import digest, settings_of
from clipmill.metadata.outputs import Outputs
from clipmill.metadata.storage import Storage
from clipmill.pipeline.ledger.rows.stored import json_artifacts
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.run_folder.state import RunState

READERS = 16  # threads, which mostly wait for a store
SNAPSHOT = re.compile(r"\bat-(\d+)\.")  # in the names of train.clip's snapshots, in percent


@dataclass(frozen=True, kw_only=True)
class Task:
    """One model's scores on one task. `digest` separates tasks of one name."""

    digest: str
    content: str  # digest of its files alone; empty of older evaluations
    kind: str | None  # "retrieval", "classification", …
    main: str | None  # the main metric
    classes: int | None
    pictures: int
    metrics: dict[str, dict[str, Any]]  # by name, as stored: value, chance, …
    folder: Storage  # of the evaluation
    ranks: str  # the file of ranks there, if the model has one


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One evaluated model."""

    seed: int
    tasks: dict[str, Task]
    epochs: float | None  # times that it saw each row
    share: float = 1.0  # of the samples of its training; below 1 of a snapshot


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Models that differ in their seed alone."""

    name: str
    stages: tuple[str, ...]  # origins of its models: `--baseline` may name them
    trials: tuple[Trial, ...]
    snapshots: tuple[Trial, ...] = ()  # earlier models of the same trainings

    @property
    def epochs(self) -> float | None:
        """Returns the most times that any model saw each row; None without a card."""
        return max((t.epochs for t in self.trials if t.epochs is not None), default=None)


@dataclass(frozen=True)
class _Origin:
    """The rows and settings behind an arm's models."""

    rows: str  # the arm's name, unless another has the same rows
    facts: dict[str, Any]  # all that tells arms apart: not seeds
    stages: tuple[str, ...]  # evaluation, training, select of its rows, data, and its parents

    @property
    def key(self) -> str:
        return digest(self.facts)


def arms(state: RunState) -> list[Arm]:
    """Returns every arm with an evaluated model, in the recipe's order."""
    origins: dict[str, list[_Origin]] = {}
    trials: dict[str, dict[Any, Trial]] = {}
    for name in state.stages:
        artifacts = json_artifacts(state.stages[name], "results")
        models = [model for results in artifacts for model in results.get("models", [])]
        if not models:
            continue
        origin = _origin(state, name)
        origins.setdefault(origin.key, []).append(origin)
        arm_trials = trials.setdefault(origin.key, {})
        trained = _evaluated(state, name).model
        for model, epochs in zip(models, _epochs(state, trained, models), strict=True):
            seed, share = int(model.get("seed") or 0), share_of(model)
            # External models have no seeds: other weights are another model.
            which = (seed, share) if trained else (model.get("card"), model.get("model"))
            # Of several evaluations of one model the first has the say on a task.
            tasks = dict(arm_trials[which].tasks) if which in arm_trials else {}
            for task, scores in _tasks(model, state.stages[name].folder):
                tasks.setdefault(task, scores)
            arm_trials[which] = Trial(seed=seed, tasks=tasks, epochs=epochs, share=share)
    names = _names([same[0] for same in origins.values()])
    return [
        Arm(
            name=name,
            stages=tuple(dict.fromkeys(stage for origin in same for stage in origin.stages)),
            trials=tuple(trial for trial in trials[key].values() if trial.share == 1),
            snapshots=tuple(trial for trial in trials[key].values() if trial.share < 1),
        )
        for name, (key, same) in zip(names, origins.items(), strict=True)
    ]


def share_of(model: Mapping[str, Any]) -> float:
    """Returns the share of its training's samples that an evaluated model has seen."""
    percent = SNAPSHOT.search(model.get("card") or "")
    return int(percent[1]) / 100 if percent else 1.0


def _origin(state: RunState, evaluation: str) -> _Origin:
    stages, stage = state.plan.stages, _evaluated(state, evaluation)
    if not stage.model:
        outside = {"model": settings_of(stage.stage).get("model", evaluation)}
        return _Origin(evaluation, outside, (evaluation,))
    trained = stages[stage.model]
    alike = ("seeds", "snapshots")  # trainings that differ in these are of one arm
    settings = {k: v for k, v in settings_of(trained.stage).items() if k not in alike}
    data = [part for part in (trained.kept_by, trained.data) if part]
    parents = stages[trained.data].parents if trained.data in stages else ()
    facts = settings | {
        "uses": trained.uses,
        "data": trained.data or trained.elsewhere,
        "rows": trained.kept_by,
        "parents": {need: stages[need].fingerprint for need in trained.needs},
    }
    return _Origin(_rows(trained), facts, (evaluation, trained.name, *data, *parents))


def _evaluated(state: RunState, name: str) -> PlannedStage:
    """Returns the stage that took the model: an evaluation, or the one that its data are of."""
    stage = state.plan.stages[name]
    return stage if stage.model else state.plan.stages.get(stage.data or "", stage)


def _rows(trained: PlannedStage) -> str:
    """Returns a name for a training's rows: that of the list, the select or the export."""
    subset = getattr(trained.stage, "subset", None)
    if isinstance(subset, str):
        return PurePosixPath(subset).stem
    return trained.kept_by or trained.data or trained.name


def _names(origins: Sequence[_Origin]) -> list[str]:
    """Returns a unique name for each arm: `raw`, or `raw (learning_rate 0.001)` if that differs."""
    names = []
    for origin in origins:
        same = [other for other in origins if other.rows == origin.rows]
        differ = [
            f"{key} {value}"
            for key, value in origin.facts.items()
            if key != "parents" and any(other.facts.get(key) != value for other in same)
        ]
        lacking = {key for other in same for key in other.facts} - origin.facts.keys()
        differ += [f"{key} default" for key in sorted(lacking)]
        names.append(origin.rows + (f" ({', '.join(differ)})" if differ else ""))
    return [
        f"{name} ({o.stages[min(1, len(o.stages) - 1)]})" if names.count(name) > 1 else name
        for name, o in zip(names, origins, strict=True)
    ]


def _tasks(model: dict[str, Any], folder: Storage) -> Iterator[tuple[str, Task]]:
    prefix = prefix_of(model.get("card") or "")
    for name, entry in model.get("tasks", {}).items():
        metrics = {
            metric: value
            for metric, value in entry.get("metrics", {}).items()
            if isinstance(value, dict) and "value" in value
        }
        rules = digest([name, entry.get("sha256"), model.get("rules")])[:8]
        yield (
            name,
            Task(
                digest=rules,
                content=entry.get("sha256") or "",
                kind=entry.get("kind"),
                main=entry.get("metric"),
                classes=entry.get("classes"),
                pictures=entry.get("pictures") or 0,
                metrics=metrics,
                folder=folder,
                ranks=f"{prefix}{name}.parquet",
            ),
        )


def _epochs(
    state: RunState, trained: str | None, models: Sequence[dict[str, Any]]
) -> list[float | None]:
    """Returns how often each model saw a row, by the card beside its weights."""
    if trained is None:
        return [None] * len(models)
    outputs = Outputs(state.stages[trained].folder)

    def seen(model: dict[str, Any]) -> float | None:
        name = (model.get("card") or "").removeprefix("out/")
        if name not in outputs.names:
            return None
        card = json.loads(outputs.read(name))
        samples = card.get("samples_seen")
        if samples is None and "plan" in card and "batch_size" in card:
            samples = card["plan"]["steps"] * card["batch_size"]
        return samples / card["rows"] if samples and card.get("rows") else None

    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(seen, models))
