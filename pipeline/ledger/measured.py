"""Every metric of every evaluated model, and what it would be on other items of the task.

The telling metric of a task is R@5 of the pictures of captions; else top 5; else the main one of
the task's rules, else top 1. No top 5 of 12 classes or fewer is taken up: guessing is good at it.
A fine task has more than 12 classes, or is a retrieval: others rank no subsets.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import comb

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from metadata.outputs import Outputs
from pipeline.ledger.items import AT, PER_CLASS, redrawn, terms
from pipeline.ledger.trials import READERS, Task, Trial

# Shapes: S models that have the metric, D draws of a task's items.

RETRIEVAL, TOP_5, TOP_1 = "image_retrieval_recall@5", "acc5", "acc1"
FEW_CLASSES = 12
HEADLINE = "mean of fine tasks"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One metric of one task. `models` are the numbers of those that have it."""

    task: str
    metric: str
    chance: float | None  # its value by guessing
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
            found += _of_task(told, digest, of, ranks)
    return found


def telling(every: Sequence[Measured]) -> list[Measured]:
    """One metric a task, the most telling; retrieval first."""
    chosen = []
    for task in dict.fromkeys(one.task for one in every):
        of_task = {one.metric: one for one in every if one.task == task}
        main = next(iter(of_task))
        best = next((name for name in (RETRIEVAL, TOP_5) if name in of_task), main)
        chosen.append(of_task[best])
    return sorted(chosen, key=lambda one: one.metric != RETRIEVAL)


def mean_of(tasks: Sequence[Measured]) -> Measured:
    """The mean of some tasks that the same models have; their items are drawn apart."""
    chances = [one.chance for one in tasks if one.chance is not None]
    draws = [one.draw_SD for one in tasks if one.draw_SD is not None]
    return Measured(
        task=HEADLINE,
        metric="",
        chance=sum(chances) / len(tasks) if len(chances) == len(tasks) else None,
        is_fine=True,
        models=tasks[0].models,
        value_S=np.mean([one.value_S for one in tasks], axis=0),
        draw_SD=np.mean(draws, axis=0) if len(draws) == len(tasks) else None,
    )


def _of_task(
    name: str, digest: str, of: dict[int, Task], ranks: dict[int, pa.Table | None]
) -> Iterator[Measured]:
    first = next(iter(of.values()))
    metrics = dict.fromkeys(metric for task in of.values() for metric in task.metrics)
    main = first.main or TOP_1
    for metric in sorted(metrics, key=lambda metric: metric != main):  # the main one first
        at = AT.match(metric)
        if at and at[1] == "acc" and int(at[2]) > 1 and (first.classes or 99) <= FEW_CLASSES:
            continue
        held = {number: task for number, task in of.items() if metric in task.metrics}
        yield Measured(
            task=name,
            metric=metric,
            chance=first.chance if metric == first.main else chance(metric, first),
            is_fine=first.kind == "retrieval" or (first.classes or 0) > FEW_CLASSES,
            models=tuple(held),
            value_S=np.array([task.metrics[metric].value for task in held.values()]),
            draw_SD=_draws(metric, digest, [ranks[number] for number in held]),
        )


def chance(metric: str, task: Task) -> float | None:
    """The value of a metric by guessing; None where that is not known."""
    at = AT.match(metric)
    if metric == PER_CLASS and task.classes:
        return 1 / task.classes
    if not at:
        return None
    k = int(at[2])
    if at[1] == "acc":
        return min(1.0, k / task.classes) if task.classes else None
    if not task.pictures or not task.captions:
        return None
    if at[1].startswith("image"):
        return min(1.0, k / task.pictures)
    own = round(task.captions / task.pictures)  # any of a picture's own captions is right
    return 1 - comb(max(0, task.captions - own), k) / comb(task.captions, k)


def _draws(
    metric: str, digest: str, ranks: Sequence[pa.Table | None]
) -> NDArray[np.float64] | None:
    found = [terms(metric, table) for table in ranks if table is not None]
    models = [one for one in found if one is not None]
    if len(models) < len(ranks) or len({len(one.item_K) for one in models}) != 1:
        return None
    items = next(len(table) for table in ranks if table is not None)
    return redrawn(models, items, int(digest, 16))


def _ranks(task: Task) -> pa.Table | None:
    """The stored ranks; None of an evaluation that leaves none."""
    held = Outputs(task.folder)
    if task.ranks not in held.names:
        return None
    return pq.read_table(pa.BufferReader(held.read(task.ranks)))
