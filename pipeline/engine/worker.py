"""Builds the Worker, through which a stage's function sees the place where it runs."""

import gc
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.environments import made, python_of
from clipmill.pipeline.engine.helpers import HelperProcess
from clipmill.pipeline.executors.telling import reporting
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.provided import Answers, Budget, LocalBudget, Remembered, Usage, ignored
from clipmill.pipeline.run_folder.pins import pin
from clipmill.pipeline.stage import Environment, Worker

VERSIONS = re.compile(r"\s*[<>=!~;@].*")  # the part of a requirement after its name


def worker_of(
    planned: PlannedStage,
    seed: int,
    scratch: Path,
    folder: Storage | None = None,
    model: Storage | None = None,
    centroids: Storage | None = None,
    tell: Callable[..., None] = ignored,
    row_done: Callable[[], None] = ignored,
    answers: Answers | None = None,
    budget: Callable[[Mapping[str, float]], Budget] = LocalBudget,
    took: Callable[[Usage], None] = ignored,
    hold: Callable[[HelperProcess], object] = ignored,
) -> Worker:
    """Returns a stage's Worker; pins are stored in `folder`, if given.

    `answers` and `budget` are the run's, and used for a `recorded` stage only.
    `hold` gets each helper process that is started, to stop it when the stage is over.
    """
    resources = planned.stage.resources
    is_recorded = planned.stage.determinism == "recorded"
    return Worker(
        seed=seed,
        stage=planned.name,
        device="cuda" if resources.gpus else "cpu",
        threads=resources.cpus,
        scratch=scratch,
        model=model.uri if model else None,
        centroids=centroids.uri if centroids else None,
        pin=partial(pin, folder, planned.name) if folder else ignored,
        tell=tell,
        row_done=row_done,
        answers=answers if answers and is_recorded else Remembered(),
        budget=budget if is_recorded else LocalBudget,
        took=took,
        environment=partial(_python, planned.name),
        start_helper=partial(_helper, planned.name, scratch, hold),
    )


def free_gpu(stages: Iterable[PlannedStage]) -> None:
    """Frees the memory that models of these stages took on a GPU, where one has them."""
    if any(planned.stage.resources.gpus for planned in stages):
        gc.collect()  # a model may refer to itself; not on CPUs, as it takes a second


def _python(stage: str, environment: Environment) -> Path:
    """Returns the environment's Python; making one takes minutes, which is shown as progress."""
    if python := made(environment):
        return python
    names = ", ".join(VERSIONS.sub("", package) for package in environment.packages)
    with reporting(stage, f"making a Python with {names}"):
        return python_of(environment)


def _helper(
    stage: str, scratch: Path, hold: Callable[[HelperProcess], object], *args: Any, **kwargs: Any
) -> HelperProcess:
    """Starts a helper and waits until it is healthy, which takes minutes for a large model."""
    with reporting(stage, "waiting for its server to start"):
        helper = HelperProcess(stage, scratch, *args, **kwargs)
    hold(helper)
    return helper
