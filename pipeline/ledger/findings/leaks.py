"""Copies of evaluation samples in a pool: by task how many rows, and which.

By what columns name: a task and its sample, beside the column that says how near that is. The
stage's `leaks` artifact counts rows within some limits of each task.

Held at once are some rows of each task; of very many those with the least hashes.
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

LIMITS = 7  # at which rows are counted
TASKS = 6  # of which rows are shown
SHOWN = 10  # of each
SHARDS = 100  # whose rows are held until some go
OF_TASK = 1 << 16  # rows that stay of each


@dataclass(frozen=True, kw_only=True)
class TaskCounts:
    """Rows of the pool that are near one task's samples.

    `samples` were compared, and `too_short` were not. `nearest` counts the rows within the cut
    whose nearest sample is of this task, `within` those near any of its samples, at each limit of
    `Leaks.at`.
    """

    task: str
    samples: int
    too_short: int
    nearest: int
    within: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class TaskRows:
    """Where some of the rows within the cut stand whose nearest sample is of one task."""

    task: str
    rows: int
    places: tuple[Place, ...]


@dataclass(frozen=True, kw_only=True)
class Leaks:
    """Leaks by one stage: `reached` of the pool's rows are within `cut` of an evaluation sample.

    `sample` is the column that names the nearest sample, `at` the limits at which rows are counted,
    the strictest first.
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
    """Every complete stage that compared the pool with evaluation sets."""
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
    found: list[pa.Table] = []
    for table in by_shard(state, planned.root, bound):
        found.append(table.filter(pa.array(cut.reached(table["near"]))).drop_columns([UID.name]))
        for count in pc.value_counts(found[-1]["task"]).to_pylist():
            rows[count["values"]] += count["counts"]
        if len(found) == SHARDS:
            found = [_fewer(pa.concat_tables(found).combine_chunks())]
    held = pa.concat_tables(found)
    number_M = held[NUMBER].to_numpy()
    largest = sorted(rows, key=lambda task: (-rows[task], task))[:TASKS]
    few = {}
    for one in largest:
        its = np.flatnonzero(pc.equal(held["task"], one).fill_null(False))
        few[one] = number_M[spread(its, held["near"], near, SHOWN)]
    numbers = numbers_of(state, planned.root)
    sample = naming(planned.stage, "sample")
    at, tasks = limits(counts, cut, rows)
    return Leaks(
        stage=name,
        uses=planned.uses,
        rows=state.stages[planned.root].shards.rows,
        cut=cut,
        sample=sample.name if sample else None,
        reached=rows.total(),
        at=at,
        tasks=tasks,
        shown=tuple(
            TaskRows(task=one, rows=rows[one], places=tuple(numbers.places(some.tolist())))
            for one, some in few.items()
        ),
    )


def _fewer(rows: pa.Table) -> pa.Table:
    """At most OF_TASK of each task, those with the least hashes, in their order."""
    hash_N = pl.Series(mixed(rows[NUMBER].to_numpy().astype(np.uint64)))
    place_N = pl.DataFrame({"task": rows["task"], "hash": hash_N}).select(
        pl.col("hash").rank("ordinal").over("task")
    )
    return rows.filter(pa.array(place_N["hash"].to_numpy() <= OF_TASK))


def limits(
    counts: dict[str, Any], cut: Cut, nearest: dict[str, int]
) -> tuple[tuple[float, ...], tuple[TaskCounts, ...]]:
    """The limits that tell more than the one before, and the rows of each task within them.

    From the strictest to the first past the cut that adds rows, or the loosest where none does.
    Limits that add none to the one before are left out, but for the last at the cut: distances of
    pHashes are nearly all even.
    """
    order = sorted(counts["at"], reverse=">" in cut.sign)  # the strictest first
    columns = [counts["at"].index(limit) for limit in order]
    rows_TL = np.array([of["rows"] for of in counts["tasks"].values()])[:, columns]
    adds_L = np.append(True, np.diff(rows_TL).any(axis=0))
    reached_L = cut.reached(pa.chunked_array([order]))
    adds_L[[*np.flatnonzero(reached_L)[-1:], -1]] = True
    past = np.flatnonzero(adds_L & ~reached_L)[:1]
    shown = np.append(np.flatnonzero(adds_L & reached_L), past)[-LIMITS:]
    tasks = [
        TaskCounts(
            task=task,
            samples=of["samples"],
            too_short=of.get("too_short", 0),
            nearest=nearest.get(task, 0),
            within=tuple(within),
        )
        for (task, of), within in zip(
            counts["tasks"].items(), rows_TL[:, shown].tolist(), strict=True
        )
    ]
    ranked = sorted(tasks, key=lambda task: -max(task.within))
    return tuple(order[at] for at in shown.tolist()), tuple(ranked)
