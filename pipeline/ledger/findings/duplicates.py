"""Groups of duplicates, by the stages that name a keeper or a neighbour of each row.

By what columns name, so that anybody's stage is shown: a keeper stays, a neighbour need not. A
group is the rows that lead to one row that is no duplicate: from the row that each names on to one
that names nobody.

The rows are read twice: for the copies, and for the rows that copies name. Held is a heap of the
rows, however many copies there are: whom a uid means is looked up by heaps of uids, and where a row
leads on by heaps of row numbers.
"""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import UID, Column
from clipmill.metadata.uid import halves, mixed
from clipmill.pipeline.ledger.rows import heaps
from clipmill.pipeline.ledger.rows.heaps import Columns, Heaps, Rows, structured, uid_hash
from clipmill.pipeline.ledger.rows.near import (
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
from clipmill.pipeline.ledger.rows.stored import Place, json_artifacts
from clipmill.pipeline.run_folder.state import RunState, StageState

# Shapes: N rows, M copies, G groups.

Ints = NDArray[np.int64]
NAMING = [("a", "<u8"), ("b", "<u8"), ("row", "<i8"), ("near", "<f8")]  # a, b: halves of a uid
NAMED = [("a", "<u8"), ("b", "<u8"), ("rank", "<i8")]
LED = [("row", "<i8"), ("to", "<i8"), ("near", "<f8")]
LATER = 1 << 62  # of a copy's rank: of the rows of a uid, the first that stays is meant
SLOTS = 1 << 24  # at most: a byte for a part of the uids, whether one of it is named
GIVEN = 1 << 20  # members of a group


class Leads:
    """Copies among the rows of a pool, and whom they name. Rows go by their numbers, from 0.

    All copies are added, then all rows, among which those named are found.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._open = ExitStack()
        self._naming, self._named = self._new(NAMING), self._new(NAMED)
        self._is_named = np.zeros(min(SLOTS, 8 << rows.bit_length()), bool)

    def __enter__(self) -> "Leads":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def add_copies(self, row_M: Ints, keeper: pa.ChunkedArray, near_M: NDArray[np.float64]) -> None:
        """Some copies, the uids that they name, and how near they are to those."""
        if len(row_M):
            hash_M, (a_M, b_M) = uid_hash(keeper), halves(keeper).T
            self._is_named[hash_M % len(self._is_named)] = True
            copies = structured(NAMING, a=a_M, b=b_M, row=row_M, near=near_M)
            self._naming.add(self._naming.of(hash_M), copies)

    def add_rows(self, row_N: Ints, uid: pa.ChunkedArray, is_copy_N: NDArray[np.bool_]) -> None:
        """Some rows, copies too; those that nobody can have named are left out."""
        if len(row_N):
            hash_N, rank_N = uid_hash(uid), row_N + LATER * is_copy_N
            may_N = self._is_named[hash_N % len(self._is_named)]
            a_N, b_N = halves(uid)[may_N].T
            rows = structured(NAMED, a=a_N, b=b_N, rank=rank_N[may_N])
            self._named.add(self._named.of(hash_N[may_N]), rows)

    def led(self) -> Heaps:
        """LED, the copies by heaps of the row that each is led to.

        Without those led nowhere: they name nobody that is there, or go round in a circle.
        """
        led, is_chained = self._to_named()
        rounds = self.rows.bit_length()  # each leads twice as far
        for turn in range(rounds + 1):
            if not is_chained:
                break
            led, is_chained = self._further(led, is_last=turn == rounds)
        return led

    def _to_named(self) -> tuple[Heaps, bool]:
        """The copies led to the rows that they name; whether one of these is a copy."""
        led, is_chained = self._new(LED), False
        for heap in range(self._named.count):
            who = pl.DataFrame(np.empty(0, NAMED))
            for piece in self._named.pieces(heap):
                who = pl.concat([who, pl.DataFrame(piece)]).group_by("a", "b").agg(pl.min("rank"))
            for piece in self._naming.pieces(heap):
                asked = pl.DataFrame(piece).select("a", "b")
                found = asked.join(who, on=["a", "b"], how="left", maintain_order="left")["rank"]
                rank_M = found.fill_null(-1).to_numpy()
                to_M = rank_M % LATER
                goes_M = (rank_M >= 0) & (to_M != piece["row"])
                is_chained |= bool((rank_M[goes_M] >= LATER).any())
                _add(led, piece[goes_M], to_M[goes_M])
        return led, is_chained

    def _further(self, led: Heaps, is_last: bool) -> tuple[Heaps, bool]:
        """Each copy led to where its row leads; whether one has moved by that."""
        by_row, further, has_moved = self._new(LED), self._new(LED), False
        for heap in range(led.count):
            for piece in led.pieces(heap):
                by_row.add(piece["row"] // heaps.HEAP_ROWS, piece)
        for heap in range(led.count):
            start = heap * heaps.HEAP_ROWS
            on_G = np.arange(start, start + heaps.HEAP_ROWS)
            for piece in by_row.pieces(heap):
                on_G[piece["row"] - start] = piece["to"]
            for piece in led.pieces(heap):
                to_M = on_G[piece["to"] - start]
                has_moved |= bool((to_M != piece["to"]).any())
                goes_M = to_M != piece["row"]
                if is_last:
                    goes_M &= to_M == piece["to"]
                _add(further, piece[goes_M], to_M[goes_M])
        led.close()  # of a long chain there are many
        by_row.close()
        return further, has_moved

    def _new(self, dtype: Columns) -> Heaps:
        return self._open.enter_context(closing(Heaps(self.rows, dtype)))


def group_sizes(led: Heaps) -> Iterator[tuple[Ints, Ints]]:
    """Of one heap after another: (G,) rows that copies are led to, and the rows of each group, that
    one among them."""
    for heap in range(led.count):
        of_pieces = [np.unique(piece["to"], return_counts=True) for piece in led.pieces(heap)]
        if of_pieces:
            row_C, count_C = (np.concatenate(them) for them in zip(*of_pieces, strict=True))
            row_G, group_C = np.unique(row_C, return_inverse=True)
            size_G = np.zeros(len(row_G), np.int64)
            np.add.at(size_G, group_C, count_C)
            yield row_G, size_G + 1


def members(led: Heaps, row: int) -> Rows:
    """LED of the copies that are led to a row, by number; of very many, a part chosen by hash."""
    found = np.empty(0, led.dtype)
    for piece in led.pieces(row // heaps.HEAP_ROWS):
        found = np.concatenate([found, piece[piece["to"] == row]])
        if len(found) > GIVEN:
            hash_M = mixed(found["row"].astype(np.uint64))
            found = found[np.argpartition(hash_M, GIVEN)[:GIVEN]]
    return np.sort(found, order="row")


def _add(led: Heaps, copy_M: Rows, to_M: Ints) -> None:
    copies = structured(LED, row=copy_M["row"], to=to_M, near=copy_M["near"])
    led.add(to_M // heaps.HEAP_ROWS, copies)


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
