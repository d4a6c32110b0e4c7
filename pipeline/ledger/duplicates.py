"""Groups of duplicates, by the stages that name a keeper or a neighbour of each row.

By what columns name, so that anybody's stage is shown: a keeper stays, a neighbour need not. A
group is the rows that lead to one row that is no duplicate.

The rows are read twice: for the copies, and for the rows that copies name. Held is what `Leads`
holds, however many copies there are.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import UID, Column
from clipmill.pipeline.ledger.heaps import Heaps
from clipmill.pipeline.ledger.leading import Leads, group_sizes, members
from clipmill.pipeline.ledger.near import (
    NUMBER,
    Bools,
    Cut,
    Numbers,
    by_shard,
    cut_of,
    evenly,
    naming,
    nearness_of,
    numbers_of,
    spread,
)
from clipmill.pipeline.ledger.stored import Place, json_artifacts
from clipmill.pipeline.run_folder.state import RunState, StageState

# Shapes: N rows, M copies, G groups.

SIZES = (2, 3, 6, 11, 101)  # that a class of groups begins with
GROUPS = 6  # that are shown
MEMBERS = 9  # of each, beside its keeper


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows that are copies of one, and where some stand: the keeper first, then others from the
    nearest to the farthest; `past_cut` says of each whether the cut lets it stay."""

    rows: int
    places: tuple[Place, ...]
    past_cut: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """What one stage found in the rows of its root.

    `sizes` counts groups by the classes of SIZES, `largest` the rows of the largest group. `near`
    is the column that says how near rows are, `limits` between which values the stage looked, `cut`
    the threshold on it and `reached` the rows as near as that. `recall` tells of some texts how
    many had a near one, and how many of those the stage joined. `groups` are the largest.
    """

    stage: str
    uses: str
    rows: int
    duplicates: int
    sizes: tuple[int, ...]
    largest: int
    near: str | None
    limits: tuple[float, float] | None
    cut: Cut | None
    recall: dict[str, int] | None
    reached: int
    groups: tuple[Group, ...]


def duplicates(state: RunState) -> list[Duplicates]:
    """Every complete stage that names keepers, or neighbours with a threshold on their nearness."""
    answers = []
    for name, stage in state.stages.items():
        other = naming(stage.planned.stage, "keeper", "neighbour")
        near = nearness_of(stage.planned.stage)
        cut = cut_of(state, name, near) if near else None
        is_told_apart = other is not None and (other.names == "keeper" or cut is not None)
        if other and is_told_apart and stage.complete and stage.shards:
            answers.append(_grouped(state, name, other, near, cut))
    return answers


def _grouped(
    state: RunState, name: str, other: Column, near: Column | None, cut: Cut | None
) -> Duplicates:
    planned = state.plan.stages[name]
    rows = state.stages[planned.root].shards.rows
    reached = found = 0
    with Leads(rows) as leads:
        for table, is_copy_N, reached_N in _copies(state, name, other, near, cut):
            copies = table.filter(pa.array(is_copy_N))
            near_M = _numbers(copies["near"]) if near else np.zeros(len(copies))
            leads.add_copies(copies[NUMBER].to_numpy(), copies["keeper"], near_M)
            found += len(copies)
            reached += int(reached_N.sum())
        if found:
            for table, is_copy_N, _ in _copies(state, name, other, near, cut):
                leads.add_rows(table[NUMBER].to_numpy(), table[UID.name], is_copy_N)
        led = leads.led()
        classes, largest = _sizes(led)
        return Duplicates(
            stage=name,
            uses=planned.uses,
            rows=rows,
            duplicates=found,
            sizes=tuple(classes),
            largest=largest[0][0] if largest else 1,
            near=near.name if near else None,
            limits=planned.stage.bounds.get(near.name) if near else None,
            cut=cut,
            recall=_recall(state.stages[name]),
            reached=reached,
            groups=tuple(_groups(led, largest, numbers_of(state, planned.root), near, cut)),
        )


def _copies(
    state: RunState, name: str, other: Column, near: Column | None, cut: Cut | None
) -> Iterator[tuple[pa.Table, Bools, Bools]]:
    """Of each shard the rows; (N,) which of them are copies, and which are as near as the cut."""
    bound = {"keeper": (name, other.name), **({"near": (name, near.name)} if near else {})}
    for table in by_shard(state, state.plan.stages[name].root, bound):
        is_copy_N = table["keeper"].is_valid().to_numpy()
        reached_N = cut.reached(table["near"]) if cut else np.zeros(len(table), bool)
        if cut and other.names != "keeper":
            is_copy_N &= reached_N
        yield table, is_copy_N, reached_N


def _numbers(near: pa.ChunkedArray) -> NDArray[np.float64]:
    """(N,) nan where there is none."""
    return np.asarray(near.cast(pa.float64()).to_numpy())


def _recall(stage: StageState) -> dict[str, int] | None:
    return next((recall["texts_drawn"] for recall in json_artifacts(stage, "recall")), None)


def _sizes(led: Heaps) -> tuple[list[int], list[tuple[int, int]]]:
    """Groups of each class of sizes; rows of the largest few, and the row that each is led to."""
    classes = np.zeros(len(SIZES), np.int64)
    largest: list[tuple[int, int]] = []
    for first_G, size_G in group_sizes(led):
        classes += sizes(size_G)
        some = np.argsort(-size_G, kind="stable")[:GROUPS]
        largest += zip(size_G[some].tolist(), first_G[some].tolist(), strict=True)
        largest = sorted(largest, key=lambda it: (-it[0], it[1]))[:GROUPS]
    return classes.tolist(), largest


def sizes(size_N: NDArray[np.int64]) -> list[int]:
    """Groups of each class of sizes."""
    groups = np.searchsorted(SIZES, size_N[size_N > 1], side="right") - 1
    return list(map(int, np.bincount(groups, minlength=len(SIZES))))


def _groups(
    led: Heaps,
    largest: list[tuple[int, int]],
    numbers: Numbers,
    near: Column | None,
    cut: Cut | None,
) -> Iterator[Group]:
    for rows, first in largest:
        its = members(led, first)
        every, past = np.arange(len(its)), np.zeros(min(MEMBERS, len(its)), bool)
        few = evenly(every, MEMBERS)
        if near:
            value = pa.chunked_array([pa.array(its["near"], from_pandas=True).cast(near.dtype)])
            few = spread(every, value, near, MEMBERS)
            past = ~cut.reached(value.take(pa.array(few))) if cut else past
        yield Group(
            rows=rows,
            places=tuple(numbers.places([first, *its["row"][few].tolist()])),
            past_cut=(False, *past.tolist()),
        )
