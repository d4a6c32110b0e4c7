"""The evaluated models of a run, each of an arm: rows and training settings.

Two trainings with other settings, or other rows, are two arms, and their names say what differs.
Trainings that differ in nothing but their seeds are one arm, and so are all models of a checkpoint
elsewhere. A seed that was trained twice counts once.
"""

import json
from collections.abc import Iterator, Sequence
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

READERS = 16  # threads, that wait for a store


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one model scored on one task. `digest` tells tasks of one name apart."""

    digest: str
    kind: str | None  # "retrieval", "classification", …
    main: str | None  # the metric that counts
    classes: int | None
    pictures: int
    metrics: dict[str, dict[str, Any]]  # by name, as stored: value, chance, …
    folder: Storage  # of the evaluation
    ranks: str  # the file there that has the ranks, of models that leave one


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One evaluated model."""

    seed: int
    tasks: dict[str, Task]
    epochs: float | None  # how often it saw each row


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Models that differ in their seed alone."""

    name: str
    stages: tuple[str, ...]  # that its models come from: what `--baseline` may name
    trials: tuple[Trial, ...]

    @property
    def epochs(self) -> float | None:
        """The most that any of its models saw each row; None where no card tells."""
        return max((t.epochs for t in self.trials if t.epochs is not None), default=None)


@dataclass(frozen=True)
class _Made:
    """How an arm's models were made."""

    rows: str  # what the arm is called where no other has its rows
    facts: dict[str, Any]  # what may differ between arms, seeds apart
    stages: tuple[str, ...]  # evaluation, training, what chose its rows, its data, their parents

    @property
    def key(self) -> str:
        return digest(self.facts)


def arms(state: RunState) -> list[Arm]:
    """Every arm with an evaluated model, in the recipe's order."""
    made: dict[str, list[_Made]] = {}
    found: dict[str, dict[Any, Trial]] = {}
    for name in state.stages:
        held = json_artifacts(state.stages[name], "results")
        models = [model for results in held for model in results.get("models", [])]
        if not models:
            continue
        how = _made(state, name)
        made.setdefault(how.key, []).append(how)
        of = found.setdefault(how.key, {})
        trained = state.plan.stages[name].model
        epochs = _epochs(state, trained, models)
        for model, seen in zip(models, epochs, strict=True):
            seed = int(model.get("seed") or 0)
            # Elsewhere nobody numbers seeds: there other weights are another model.
            which = seed if trained else (model.get("card"), model.get("model"))
            tasks = dict(_tasks(model, state.stages[name].folder))
            if which in of:
                tasks = tasks | of[which].tasks  # another evaluation of the same model
            of[which] = Trial(seed=seed, tasks=tasks, epochs=seen)
    names = _names([of[0] for of in made.values()])
    return [
        Arm(
            name=name,
            stages=tuple(dict.fromkeys(stage for how in of for stage in how.stages)),
            trials=tuple(found[key].values()),
        )
        for name, (key, of) in zip(names, made.items(), strict=True)
    ]


def _made(state: RunState, evaluation: str) -> _Made:
    stages, stage = state.plan.stages, state.plan.stages[evaluation]
    if not stage.model:
        outside = {"model": settings_of(stage.stage).get("model", evaluation)}
        return _Made(evaluation, outside, (evaluation,))
    trained = stages[stage.model]
    settings = {k: v for k, v in settings_of(trained.stage).items() if k != "seeds"}
    data = [part for part in (trained.kept_by, trained.data) if part]
    parents = stages[trained.data].parents if trained.data in stages else ()
    facts = settings | {
        "uses": trained.uses,
        "data": trained.data or trained.elsewhere,
        "rows": trained.kept_by,
        "parents": {need: stages[need].fingerprint for need in trained.needs},
    }
    return _Made(_rows(trained), facts, (evaluation, trained.name, *data, *parents))


def _rows(trained: PlannedStage) -> str:
    """A name for the rows that a training reads: of the list, the select or the export."""
    subset = getattr(trained.stage, "subset", None)
    if isinstance(subset, str):
        return PurePosixPath(subset).stem
    return trained.kept_by or trained.data or trained.name


def _names(made: Sequence[_Made]) -> list[str]:
    """A name of its own for each arm: `raw`, or `raw (learning_rate 0.001)` where that differs."""
    names = []
    for how in made:
        same = [other for other in made if other.rows == how.rows]
        differ = [
            f"{key} {value}"
            for key, value in how.facts.items()
            if key != "parents" and any(o.facts.get(key) != value for o in same)
        ]
        lacking = {key for other in same for key in other.facts} - how.facts.keys()
        differ += [f"{key} default" for key in sorted(lacking)]
        names.append(how.rows + (f" ({', '.join(differ)})" if differ else ""))
    return [
        f"{name} ({how.stages[min(1, len(how.stages) - 1)]})" if names.count(name) > 1 else name
        for name, how in zip(names, made, strict=True)
    ]


def _tasks(model: dict[str, Any], folder: Storage) -> Iterator[tuple[str, Task]]:
    of_seed = prefix_of(model.get("card") or "")
    for name, found in model.get("tasks", {}).items():
        metrics = {
            metric: value
            for metric, value in found.get("metrics", {}).items()
            if isinstance(value, dict) and "value" in value
        }
        rules = digest([name, found.get("sha256"), model.get("rules")])[:8]
        yield (
            name,
            Task(
                digest=rules,
                kind=found.get("kind"),
                main=found.get("metric"),
                classes=found.get("classes"),
                pictures=found.get("pictures") or 0,
                metrics=metrics,
                folder=folder,
                ranks=f"{of_seed}{name}.parquet",
            ),
        )


def _epochs(
    state: RunState, trained: str | None, models: Sequence[dict[str, Any]]
) -> list[float | None]:
    """How often each model saw a row, by the card beside its weights."""
    if trained is None:
        return [None] * len(models)
    held = Outputs(state.stages[trained].folder)

    def seen(model: dict[str, Any]) -> float | None:
        name = (model.get("card") or "").removeprefix("out/")
        if name not in held.names:
            return None
        card = json.loads(held.read(name))
        samples = card.get("samples_seen")
        if samples is None and "plan" in card and "batch_size" in card:
            samples = card["plan"]["steps"] * card["batch_size"]
        return samples / card["rows"] if samples and card.get("rows") else None

    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(seen, models))
