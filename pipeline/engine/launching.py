"""Launches ranks that work side by side; if one dies, all begin again together."""

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from clipmill.metadata.fingerprint import digest
from clipmill.metadata.scratch import scratch_folder
from clipmill.pipeline.dataset import Rank, Task
from clipmill.pipeline.engine import attempts
from clipmill.pipeline.engine.checkpoints import FOLDER as CHECKPOINTS
from clipmill.pipeline.engine.failures import explained
from clipmill.pipeline.engine.journal import Journal
from clipmill.pipeline.engine.units import UnitTask
from clipmill.pipeline.errors import RankDiedError, RankLostError
from clipmill.pipeline.executors.telling import ProgressReporter

MOST_ATTEMPTS = 4  # the first, and three after deaths


def launch(
    calls: Journal,
    call: str,
    fn: Callable[[Rank, Task], Mapping[str, Any]],
    task: UnitTask,
    workers: int,
) -> dict[str, Any]:
    """Runs fn on all ranks, anew while ranks die; returns the result of rank 0.

    `attempt` counts in storage, by `inputs`, and raises after too many. After a new checkpoint the
    count starts anew, since the next attempt is other work. Attempts whose ranks were killed, or
    whose machine went away, are `lost`: they do not count.
    """
    run, running = calls.run, calls.run.running
    resources, folder = run.planned.stage.resources, run.folder
    place = f"stage '{run.planned.name}', {call.rpartition('/')[2]}"
    work = partial(_launched, fn, task, place)
    calls.report(call, 0, workers)
    lost = Counter[str]()  # attempts by `inputs`
    while True:
        stored = folder.entries(f"{calls.name}/{CHECKPOINTS}", below=True)
        inputs = digest([workers, *sorted(entry.name for entry in stored)])
        try:
            results = attempts.attempt(
                lambda number: running.executor.launch(work, workers, resources),
                folder,
                call,
                inputs,
                running.run_id,
                place,
                most=MOST_ATTEMPTS,
                killed=lost[inputs],
            )
        except RankDiedError as died:
            lost[inputs] += isinstance(died, RankLostError)
            calls.report(call, 0, workers, f"begun again, as {died.args[0]}")
        else:
            calls.report(call, workers, workers)
            return dict(results[0])


def _launched(
    fn: Callable[[Rank, Task], Mapping[str, Any]], task: UnitTask, place: str, rank: Rank
) -> Mapping[str, Any]:
    """Runs fn on one rank, with a scratch folder of its own."""
    reporter = ProgressReporter((task.worker.stage,), f"{task.key}.{rank.rank}")
    with (
        tempfile.TemporaryDirectory(dir=scratch_folder()) as scratch,
        explained(f"{place}, rank {rank.rank} of {rank.of}", task.folder),
    ):
        worker = replace(task.worker, scratch=Path(scratch), tell=reporter)
        return fn(rank, replace(task, worker=worker))
