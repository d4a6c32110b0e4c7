"""Counts copies of evaluation samples in a pool, by task, with example rows.

Stages are found by what their columns name: a task and its sample, beside a column of nearness. The
stage's `leaks` artifact counts rows of each task within several limits.

Memory holds some rows of each task; of very many those with the least hashes.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import UID, Column
from clipmill.metadata.uid import mixed
from clipmill.pipeline.ledger.rows.near import (
    NUMBER,
    Cut,
    by_shard,
    cut_of,
    naming,
    nearness_of,
    numbers_of,
    spread,
)
from clipmill.pipeline.ledger.rows.stored import Place, json_artifacts
from clipmill.pipeline.run_folder.state import RunState

LIMITS = 7  # limits with counts
TASKS = 6  # tasks with example rows
SHOWN = 10  # example rows of a task
SHARDS = 100  # shards between thinnings of the rows held
OF_TASK = 1 << 16  # rows of each task that a thinning leaves


@dataclass(frozen=True, kw_only=True)
class TaskCounts:
    """Rows of the pool that are near one task's samples.

    `samples` were compared, `too_short` were not. `nearest` counts rows within the cut whose
    nearest sample is of this task; `within` counts rows near any of its samples, at each limit of
    `Leaks.at`.
    """

    task: str
    samples: int
    too_short: int
    nearest: int
    within: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class TaskRows:
    """Places of some rows within the cut whose nearest sample is of one task."""

    task: str
    rows: int
    places: tuple[Place, ...]


@dataclass(frozen=True, kw_only=True)
class Leaks:
    """Leaks by one stage: `reached` rows of the pool are within `cut` of an evaluation sample.

    `sample` is the column that names the nearest sample, `at` the limits of the counts, the
    strictest first.
    """

    stage: str
    uses: str
    rows: int
    cut: Cut
    sample: str | None
    reached: int
    at: tuple[float, ...]
    tasks: tuple[TaskCounts, ...]
    shown: tuple[TaskRows, ...]


def leaks(state: RunState) -> list[Leaks]:
    """Returns the leaks of every complete stage that compared the pool with evaluation sets."""
    answers = []
    for name, stage in state.stages.items():
        near, task = nearness_of(stage.planned.stage), naming(stage.planned.stage, "task")
        cut = cut_of(state, name, near) if near else None
        for counts in json_artifacts(stage, "leaks"):
            if near and cut and task and stage.shards:
                answers.append(_leaked(state, name, counts, near, task, cut))
    return answers


def _leaked(
    state: RunState, name: str, counts: dict[str, Any], near: Column, named: Column, cut: Cut
) -> Leaks:
    planned = state.plan.stages[name]
    bound = {"near": (name, near.name), "task": (name, named.name)}
    rows: Counter[str] = Counter()
    parts: list[pa.Table] = []
    for table in by_shard(state, planned.root, bound):
        parts.append(table.filter(pa.array(cut.reached(table["near"]))).drop_columns([UID.name]))
        for count in pc.value_counts(parts[-1]["task"]).to_pylist():
            rows[count["values"]] += count["counts"]
        if len(parts) == SHARDS:
            parts = [_fewer(pa.concat_tables(parts).combine_chunks())]
    rows_within = pa.concat_tables(parts)
    number_M = rows_within[NUMBER].to_numpy()
    largest = sorted(rows, key=lambda task: (-rows[task], task))[:TASKS]
    examples = {}
    for task in largest:
        index = np.flatnonzero(pc.equal(rows_within["task"], task).fill_null(False))
        examples[task] = number_M[spread(index, rows_within["near"], near, SHOWN)]
    numbers = numbers_of(state, planned.root)
    sample = naming(planned.stage, "sample")
    at_limits, tasks = limits(counts, cut, rows)
    return Leaks(
        stage=name,
        uses=planned.uses,
        rows=state.stages[planned.root].shards.rows,
        cut=cut,
        sample=sample.name if sample else None,
        reached=rows.total(),
        at=at_limits,
        tasks=tasks,
        shown=tuple(
            TaskRows(task=task, rows=rows[task], places=tuple(numbers.places(example.tolist())))
            for task, example in examples.items()
        ),
    )


def _fewer(rows: pa.Table) -> pa.Table:
    """Returns at most OF_TASK rows of each task, those with the least hashes, in their order."""
    hash_N = pl.Series(mixed(rows[NUMBER].to_numpy().astype(np.uint64)))
    ranked = pl.DataFrame({"task": rows["task"], "hash": hash_N}).select(
        rank=pl.col("hash").rank("ordinal").over("task")
    )
    return rows.filter(pa.array(ranked["rank"].to_numpy() <= OF_TASK))


def limits(
    counts: dict[str, Any], cut: Cut, nearest: dict[str, int]
) -> tuple[tuple[float, ...], tuple[TaskCounts, ...]]:
    """Returns the limits that add rows, and the rows of each task within them.

    The last limit returned is the first past the cut that adds rows, or the loosest if none does.
    Limits that add no rows are left out (pHash distances are nearly all even), except the last
    within the cut.
    """
    order = sorted(counts["at"], reverse=">" in cut.sign)  # the strictest first
    columns = [counts["at"].index(limit) for limit in order]
    rows_TL = np.array([entry["rows"] for entry in counts["tasks"].values()])[:, columns]
    is_shown_L = np.append(True, np.diff(rows_TL).any(axis=0))  # the strictest, and what adds rows
    reached_L = cut.reached(pa.chunked_array([order]))
    last_within = np.flatnonzero(reached_L)[-1:]
    is_shown_L[[*last_within, -1]] = True
    past = np.flatnonzero(is_shown_L & ~reached_L)[:1]
    shown = np.append(np.flatnonzero(is_shown_L & reached_L), past)[-LIMITS:]
    tasks = [
        TaskCounts(
            task=task,
            samples=entry["samples"],
            too_short=entry.get("too_short", 0),
            nearest=nearest.get(task, 0),
            within=tuple(within),
        )
        for (task, entry), within in zip(
            counts["tasks"].items(), rows_TL[:, shown].tolist(), strict=True
        )
    ]
    ranked = sorted(tasks, key=lambda task: -max(task.within))
    return tuple(order[index] for index in shown.tolist()), tuple(ranked)
