"""What a stage's function gets to know of the place where it runs."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from metadata.storage import Storage
from pipeline.engine.environments import python_of
from pipeline.engine.helpers import HelperProcess
from pipeline.planning.planned import PlannedStage
from pipeline.provided import Answers, Budget, Purse, Remembered, Took, untaken
from pipeline.run_folder.pins import pin
from pipeline.stage import Worker, unpinned, untold


def worker_of(
    planned: PlannedStage,
    seed: int,
    scratch: Path,
    folder: Storage | None = None,
    model: Storage | None = None,
    centroids: Storage | None = None,
    tell: Callable[..., None] = untold,
    answers: Answers | None = None,
    budget: Callable[[Mapping[str, float]], Budget] = Purse,
    took: Callable[[Took], None] = untaken,
) -> Worker:
    """A stage's Worker; its pins lie in `folder`, and without one nothing is pinned.

    `answers` and `budget` are those of the run, for a `recorded` stage; others ask nobody.
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
        pin=partial(pin, folder, planned.name) if folder else unpinned,
        tell=tell,
        answers=answers if answers and is_recorded else Remembered(),
        budget=budget if is_recorded else Purse,
        took=took,
        environment=python_of,
        start_helper=partial(HelperProcess, planned.name, scratch),
    )
