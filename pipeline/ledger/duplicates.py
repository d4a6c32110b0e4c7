"""Groups of duplicates, by the stages that name a keeper or a neighbour of each row.

By what columns name, so that anybody's stage is shown: a keeper stays, a neighbour need not. A
group is the rows that lead to one row that is no duplicate.

Held at once are two uids and a value of every duplicate, and what groups them: some 100 bytes of
each. Rows that are none are read once more, for the uids that duplicates name.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from metadata.schema import UID, Column
from metadata.uid import halves
from pipeline.ledger.near import (
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
from pipeline.ledger.stored import Place, json_artifacts
from pipeline.run_folder.state import RunState, StageState

# Shapes: N rows, M of them that are copies or have some.

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
    bound = {"keeper": (name, other.name), **({"near": (name, near.name)} if near else {})}
    reached, found = 0, []
    for table in by_shard(state, planned.root, bound):
        is_copy_N = table["keeper"].is_valid().to_numpy()
        if cut:
            reached_N = cut.reached(table["near"])
            reached += int(reached_N.sum())
            is_copy_N &= reached_N | (other.names == "keeper")
        found.append(table.filter(pa.array(is_copy_N)))
    copies = pa.concat_tables(found)
    both = [copies, _kept(state, planned.root, copies)]
    members = pa.concat_tables(both, promote_options="default").sort_by(NUMBER)
    first_M = led_to(members[UID.name], members["keeper"], members["keeper"].is_valid().to_numpy())
    size_M = np.bincount(first_M, minlength=len(first_M))
    largest = np.argsort(-size_M, kind="stable")[:GROUPS]
    numbers = numbers_of(state, planned.root)
    return Duplicates(
        stage=name,
        uses=planned.uses,
        rows=state.stages[planned.root].shards.rows,
        duplicates=len(copies),
        sizes=tuple(sizes(size_M)),
        largest=int(size_M.max(initial=1)),
        near=near.name if near else None,
        limits=planned.stage.bounds.get(near.name) if near else None,
        cut=cut,
        recall=_recall(state.stages[name]),
        reached=reached,
        groups=tuple(_groups(members, numbers, first_M, largest[size_M[largest] > 1], near, cut)),
    )


def _kept(state: RunState, root: str, copies: pa.Table) -> pa.Table:
    """uid and number of the rows that are no copies, and that one names."""
    named = np.unique(halves(copies["keeper"])[:, 0])
    found = [copies.select([UID.name, NUMBER]).slice(0, 0)]
    for table in by_shard(state, root, {}) if len(named) else ():
        is_named_N = _among(halves(table[UID.name])[:, 0], named)
        is_copy_N = _among(table[NUMBER].to_numpy(), copies[NUMBER].to_numpy())
        found.append(table.filter(pa.array(is_named_N & ~is_copy_N)))
    kept = pa.concat_tables(found)
    return kept.filter(pc.is_in(kept[UID.name], value_set=copies["keeper"].combine_chunks()))


def _among(value_N: NDArray[Any], sorted_M: NDArray[Any]) -> Bools:
    """(N,) whether each value is one of some, which are in order and at least one."""
    at_N = np.searchsorted(sorted_M, value_N)
    return np.asarray(sorted_M[np.minimum(at_N, len(sorted_M) - 1)] == value_N)


def _recall(stage: StageState) -> dict[str, int] | None:
    return next((recall["texts_drawn"] for recall in json_artifacts(stage, "recall")), None)


def led_to(uid: pa.ChunkedArray, keeper: pa.ChunkedArray, duplicate_N: Bools) -> NDArray[np.int64]:
    """(N,) the row that each row is led to from keeper to keeper; itself where no duplicate."""
    next_N = np.arange(len(uid))
    left_N = duplicate_N.copy()
    # Where a uid repeats, the row of that uid that stays is meant, else the first.
    for named in (np.flatnonzero(~duplicate_N), np.flatnonzero(duplicate_N)):
        if left_N.any():
            at = pc.index_in(keeper, value_set=uid.take(pa.array(named)))
            found_N = left_N & at.is_valid().to_numpy()
            next_N[found_N] = named[at.fill_null(0).to_numpy()[found_N]]
            left_N &= ~found_N
    for _ in range(len(uid).bit_length()):  # each round leads twice as far
        further_N = next_N[next_N]
        if (further_N == next_N).all():
            break
        next_N = further_N
    return next_N


def sizes(size_N: NDArray[np.int64]) -> list[int]:
    """Groups of each class of sizes."""
    groups = np.searchsorted(SIZES, size_N[size_N > 1], side="right") - 1
    return list(map(int, np.bincount(groups, minlength=len(SIZES))))


def _groups(
    members: pa.Table,
    numbers: Numbers,
    first_M: NDArray[np.int64],
    largest: NDArray[np.int64],
    near: Column | None,
    cut: Cut | None,
) -> Iterator[Group]:
    number_M = members[NUMBER].to_numpy()
    for first in largest.tolist():
        its = np.flatnonzero(first_M == first)
        others = its[its != first]
        few = spread(others, members["near"], near, MEMBERS) if near else evenly(others, MEMBERS)
        past = ~cut.reached(members["near"].take(few)) if cut else np.zeros(len(few), bool)
        yield Group(
            rows=len(its),
            places=tuple(numbers.places(number_M[[first, *few]].tolist())),
            past_cut=(False, *past.tolist()),
        )
