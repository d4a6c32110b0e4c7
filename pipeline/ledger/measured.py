"""Every metric of every evaluated model, and what it would be on other items of the task.

The main metric of a task is the one that results.json names: that of DataComp's rules, else R@5 of
the pictures of captions, else top 5, else top 1. No top 5 of 12 classes or fewer is taken up:
guessing is good at it. A fine task has more than 12 classes, or is a retrieval.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipmill.metadata.evaluated import FEW_CLASSES
from clipmill.metadata.outputs import Outputs
from clipmill.pipeline.ledger.items import AT, redrawn, terms
from clipmill.pipeline.ledger.trials import READERS, Task, Trial

# Shapes: S models that have the metric, D draws of a task's items.

TELLING = ("image_retrieval_recall@5", "acc5", "acc1")  # where an older evaluation names none
HEADLINE = "mean of fine tasks"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One metric of one task. `models` are the numbers of those that have it."""

    task: str
    metric: str
    chance: float | None  # its value by guessing
    is_main: bool  # the one that counts of its task
    is_fine: bool
    models: tuple[int, ...]
    value_S: NDArray[np.float64]
    draw_SD: NDArray[np.float64] | None  # on each draw of the items; None where no ranks tell

    @property
    def key(self) -> tuple[str, str]:
        return self.task, self.metric


def measured(trials: Sequence[Trial]) -> list[Measured]:
    """Every metric of every task, the tasks in the order in which they come.

    Tasks of one name whose content or rules differ are two, and never compared.
    """
    by_task: dict[tuple[str, str], dict[int, Task]] = {}
    for number, trial in enumerate(trials):
        for name, task in trial.tasks.items():
            by_task.setdefault((name, task.digest), {})[number] = task
    names = [name for name, _ in by_task]
    found: list[Measured] = []
    with ThreadPoolExecutor(READERS) as pool:
        for (name, digest), of in by_task.items():
            ranks = dict(zip(of, pool.map(_ranks, of.values()), strict=True))
            told = f"{name} ({digest})" if names.count(name) > 1 else name
            found += _of_task(told, of, ranks)
    return found


def telling(every: Sequence[Measured]) -> list[Measured]:
    """The main metric of each task, retrieval first."""
    return sorted((one for one in every if one.is_main), key=lambda one: one.metric != TELLING[0])


def mean_of(tasks: Sequence[Measured]) -> Measured:
    """The mean of some tasks that the same models have; their items are drawn apart."""
    chances = [one.chance for one in tasks if one.chance is not None]
    draws = [one.draw_SD for one in tasks if one.draw_SD is not None]
    return Measured(
        task=HEADLINE,
        metric="",
        chance=sum(chances) / len(tasks) if len(chances) == len(tasks) else None,
        is_main=True,
        is_fine=True,
        models=tasks[0].models,
        value_S=np.mean([one.value_S for one in tasks], axis=0),
        draw_SD=np.mean(draws, axis=0) if len(draws) == len(tasks) else None,
    )


def _of_task(
    name: str, of: dict[int, Task], ranks: dict[int, pa.Table | None]
) -> Iterator[Measured]:
    first = next(iter(of.values()))
    every = dict.fromkeys(metric for task in of.values() for metric in task.metrics)
    metrics = [metric for metric in every if not _is_easy(metric, first.classes)]
    main = next((known for known in (first.main, *TELLING, *metrics) if known in metrics), None)
    for metric in metrics:
        held = {number: task for number, task in of.items() if metric in task.metrics}
        yield Measured(
            task=name,
            metric=metric,
            chance=next(iter(held.values())).metrics[metric].get("chance"),
            is_main=metric == main,
            is_fine=first.kind == "retrieval" or (first.classes or 0) > FEW_CLASSES,
            models=tuple(held),
            value_S=np.array([task.metrics[metric]["value"] for task in held.values()]),
            draw_SD=_draws(metric, held, ranks),
        )


def _is_easy(metric: str, classes: int | None) -> bool:
    """Whether it is a top k above 1 of few classes."""
    at = AT.match(metric)
    is_top_k = at is not None and at[1] == "acc" and int(at[2]) > 1
    return is_top_k and classes is not None and classes <= FEW_CLASSES


def _draws(
    metric: str, held: dict[int, Task], ranks: dict[int, pa.Table | None]
) -> NDArray[np.float64] | None:
    """None where the ranks of any model do not tell the metric."""
    found = []
    for number, task in held.items():
        table = ranks[number]
        of = None if table is None else terms(metric, task.metrics[metric], table)
        if of is None:
            return None
        found.append(of)
    return redrawn(found, int(next(iter(held.values())).digest, 16))


def _ranks(task: Task) -> pa.Table | None:
    """The stored ranks; None of an evaluation that leaves none."""
    held = Outputs(task.folder)
    if task.ranks not in held.names:
        return None
    return pq.read_table(pa.BufferReader(held.read(task.ranks)))
