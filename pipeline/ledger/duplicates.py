"""Groups of duplicates, by the stages that name a keeper or a neighbour of each row.

By what columns name, so that anybody's stage is shown: a keeper stays, a neighbour need not. A
group is the rows that lead to one row that is no duplicate.

Held at once are two uids and a value of every row, and what groups them: some 100 bytes a row.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from metadata.schema import UID, Column
from pipeline.ledger.near import (
    Bools,
    Cut,
    Pool,
    cut_of,
    evenly,
    naming,
    nearness_of,
    pool_with,
    spread,
)
from pipeline.ledger.stored import Place, json_artifacts
from pipeline.run_folder.state import RunState, StageState

# Shapes: N rows of a pool.

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
    pool = pool_with(state, planned.root, bound)
    duplicate_N = pool.table["keeper"].is_valid().to_numpy()
    if other.names == "neighbour" and cut:
        duplicate_N &= cut.reached(pool.table["near"])
    first_N = led_to(pool.table[UID.name], pool.table["keeper"], duplicate_N)
    size_N = np.bincount(first_N, minlength=len(first_N))
    largest = np.argsort(-size_N, kind="stable")[:GROUPS]
    return Duplicates(
        stage=name,
        uses=planned.uses,
        rows=len(first_N),
        duplicates=int(duplicate_N.sum()),
        sizes=tuple(sizes(size_N)),
        largest=int(size_N.max(initial=1)),
        near=near.name if near else None,
        limits=planned.stage.bounds.get(near.name) if near else None,
        cut=cut,
        recall=_recall(state.stages[name]),
        reached=int(cut.reached(pool.table["near"]).sum()) if cut else 0,
        groups=tuple(_groups(pool, first_N, largest[size_N[largest] > 1], near, cut)),
    )


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
    pool: Pool,
    first_N: NDArray[np.int64],
    largest: NDArray[np.int64],
    near: Column | None,
    cut: Cut | None,
) -> Iterator[Group]:
    past_N = ~cut.reached(pool.table["near"]) if cut else np.zeros(len(first_N), bool)
    for first in largest.tolist():
        members = np.flatnonzero(first_N == first)
        others = members[members != first]
        few = spread(others, pool.table["near"], near, MEMBERS) if near else evenly(others, MEMBERS)
        yield Group(
            rows=len(members),
            places=tuple(pool.places([first, *few.tolist()])),
            past_cut=(False, *past_N[few].tolist()),
        )
