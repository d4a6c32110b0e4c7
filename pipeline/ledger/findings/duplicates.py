"""Groups duplicates, by the stages that name a canonical row or a neighbour of each row.

Stages are found by what their columns name, so that own stages work too: a canonical row stays, a
neighbour need not. Root resolution follows each row's named row until a row that names none; rows
with the same root are a group.

The rows are read twice: for the copies, and for the rows that copies name. Memory holds one
partition of rows, however many copies there are: uids are joined by partitions of their hashes,
and named rows are followed by partitions of row numbers.
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
from clipmill.pipeline.ledger.rows import partitions
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
from clipmill.pipeline.ledger.rows.partitions import Columns, Partitions, Rows, structured, uid_hash
from clipmill.pipeline.ledger.rows.stored import Place, json_artifacts
from clipmill.pipeline.run_folder.state import RunState

# Shapes: N rows, M copies, G groups.

Ints = NDArray[np.int64]
NAMING = [("a", "<u8"), ("b", "<u8"), ("row", "<i8"), ("near", "<f8")]  # a, b: halves of a uid
NAMED = [("a", "<u8"), ("b", "<u8"), ("rank", "<i8")]
RESOLVED = [("row", "<i8"), ("to", "<i8"), ("near", "<f8")]
LATER = 1 << 62  # added to a copy's rank: a uid means its first row that stays
SLOTS = 1 << 24  # most bytes of a filter by hash: whether a uid is named
GIVEN = 1 << 20  # most members of a group that are returned


class Roots:
    """Copies among the rows of a pool, and their roots; rows are numbers from 0.

    All copies are added first, then all rows, which are joined by uid.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._open = ExitStack()
        self._naming, self._named = self._new(NAMING), self._new(NAMED)
        self._is_named = np.zeros(min(SLOTS, 8 << rows.bit_length()), bool)

    def __enter__(self) -> "Roots":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def add_copies(self, row_M: Ints, keeper: pa.ChunkedArray, near_M: NDArray[np.float64]) -> None:
        """Adds copies, the uids that they name, and how near they are to those."""
        if len(row_M):
            hash_M, (a_M, b_M) = uid_hash(keeper), halves(keeper).T
            self._is_named[hash_M % len(self._is_named)] = True
            copies = structured(NAMING, a=a_M, b=b_M, row=row_M, near=near_M)
            self._naming.add(self._naming.partition_of(hash_M), copies)

    def add_rows(self, row_N: Ints, uid: pa.ChunkedArray, is_copy_N: NDArray[np.bool_]) -> None:
        """Adds rows, including copies; skips rows that no copy can have named."""
        if len(row_N):
            hash_N, rank_N = uid_hash(uid), row_N + LATER * is_copy_N
            may_N = self._is_named[hash_N % len(self._is_named)]
            a_N, b_N = halves(uid)[may_N].T
            rows = structured(NAMED, a=a_N, b=b_N, rank=rank_N[may_N])
            self._named.add(self._named.partition_of(hash_N[may_N]), rows)

    def resolved(self) -> Partitions:
        """Returns the resolved copies (RESOLVED), in partitions by their roots.

        Copies without a root are left out: they name a missing row, or are part of a cycle.
        """
        resolved, is_chained = self._named_rows()
        rounds = self.rows.bit_length()  # each doubles the distance
        for turn in range(rounds + 1):
            if not is_chained:
                break
            resolved, is_chained = self._advanced(resolved, is_last=turn == rounds)
        return resolved

    def _named_rows(self) -> tuple[Partitions, bool]:
        """Returns the copies with the rows that they name, and whether any of these is a copy."""
        resolved, is_chained = self._new(RESOLVED), False
        for partition in range(self._named.count):
            rank_of_uid = pl.DataFrame(np.empty(0, NAMED))
            for piece in self._named.pieces(partition):
                rank_of_uid = (
                    pl.concat([rank_of_uid, pl.DataFrame(piece)])
                    .group_by("a", "b")
                    .agg(pl.min("rank"))
                )
            for piece in self._naming.pieces(partition):
                keys = pl.DataFrame(piece).select("a", "b")
                ranked = keys.join(rank_of_uid, on=["a", "b"], how="left", maintain_order="left")
                rank_M = ranked["rank"].fill_null(-1).to_numpy()
                to_M = rank_M % LATER
                is_valid_M = (rank_M >= 0) & (to_M != piece["row"])
                is_chained |= bool((rank_M[is_valid_M] >= LATER).any())
                _add(resolved, piece[is_valid_M], to_M[is_valid_M])
        return resolved, is_chained

    def _advanced(self, resolved: Partitions, is_last: bool) -> tuple[Partitions, bool]:
        """Returns copies moved on to their rows' targets (pointer jumping); whether any moved."""
        by_row, further, has_moved = self._new(RESOLVED), self._new(RESOLVED), False
        for partition in range(resolved.count):
            for piece in resolved.pieces(partition):
                by_row.add(piece["row"] // partitions.PARTITION_ROWS, piece)
        for partition in range(resolved.count):
            start = partition * partitions.PARTITION_ROWS
            next_G = np.arange(start, start + partitions.PARTITION_ROWS)
            for piece in by_row.pieces(partition):
                next_G[piece["row"] - start] = piece["to"]
            for piece in resolved.pieces(partition):
                to_M = next_G[piece["to"] - start]
                has_moved |= bool((to_M != piece["to"]).any())
                is_valid_M = to_M != piece["row"]
                if is_last:  # who still moves is in a cycle
                    is_valid_M &= to_M == piece["to"]
                _add(further, piece[is_valid_M], to_M[is_valid_M])
        resolved.close()  # a long chain makes many
        by_row.close()
        return further, has_moved

    def _new(self, dtype: Columns) -> Partitions:
        return self._open.enter_context(closing(Partitions(self.rows, dtype)))


def group_sizes(resolved: Partitions) -> Iterator[tuple[Ints, Ints]]:
    """Yields per partition (G,) the roots of groups, and the rows of each group, with its root."""
    for partition in range(resolved.count):
        counts = [
            np.unique(piece["to"], return_counts=True) for piece in resolved.pieces(partition)
        ]
        if counts:
            row_C, count_C = (np.concatenate(arrays) for arrays in zip(*counts, strict=True))
            row_G, group_C = np.unique(row_C, return_inverse=True)
            yield row_G, np.bincount(group_C, count_C).astype(np.int64) + 1


def members(resolved: Partitions, row: int) -> Rows:
    """Returns the copies of a root (RESOLVED) by row number; at most GIVEN, chosen by hash."""
    copies = np.empty(0, resolved.dtype)
    for piece in resolved.pieces(row // partitions.PARTITION_ROWS):
        copies = np.concatenate([copies, piece[piece["to"] == row]])
        if len(copies) > GIVEN:
            hash_M = mixed(copies["row"].astype(np.uint64))
            copies = copies[np.argpartition(hash_M, GIVEN)[:GIVEN]]
    return np.sort(copies, order="row")


def _add(resolved: Partitions, copy_M: Rows, to_M: Ints) -> None:
    copies = structured(RESOLVED, row=copy_M["row"], to=to_M, near=copy_M["near"])
    resolved.add(to_M // partitions.PARTITION_ROWS, copies)


SIZES = (2, 3, 6, 11, 101)  # least rows of each class of groups
GROUPS = 6  # groups shown
MEMBERS = 9  # rows shown of each, beside its root


@dataclass(frozen=True, kw_only=True)
class Group:
    """Copies of one row, and the places of some: the root first, then copies from the nearest to
    the farthest; `past_cut` is true of those that the cut lets stay."""

    rows: int
    places: tuple[Place, ...]
    past_cut: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """The groups that one stage found in the rows of its root.

    `sizes` counts groups by the classes of SIZES, `largest` the rows of the largest. `near` is the
    column of nearness, `limits` the range of values that the stage searched, `cut` the threshold
    on it, and `reached` the number of rows within. `recall` counts sampled texts that have a near
    one, and those that the stage joined. `groups` are the largest.
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
    """Returns the groups of stages that name canonical rows, or neighbours with a threshold."""
    answers = []
    for name, stage in state.stages.items():
        named = naming(stage.planned.stage, "keeper", "neighbour")
        near = nearness_of(stage.planned.stage)
        cut = cut_of(state, name, near) if near else None
        is_grouped = named is not None and (named.names == "keeper" or cut is not None)
        if named and is_grouped and stage.complete and stage.shards:
            answers.append(_grouped(state, name, named, near, cut))
    return answers


def _grouped(
    state: RunState, name: str, other: Column, near: Column | None, cut: Cut | None
) -> Duplicates:
    planned = state.plan.stages[name]
    rows = state.stages[planned.root].shards.rows
    recalls = json_artifacts(state.stages[name], "recall")
    reached = copied = 0
    with Roots(rows) as roots:
        for table, is_copy_N, reached_N in _copies(state, name, other, near, cut):
            copies = table.filter(pa.array(is_copy_N))
            near_M = copies["near"].cast(pa.float64()).to_numpy() if near else np.zeros(len(copies))
            roots.add_copies(copies[NUMBER].to_numpy(), copies["keeper"], near_M)
            copied += len(copies)
            reached += int(reached_N.sum())
        if copied:
            for table, is_copy_N, _ in _copies(state, name, other, near, cut):
                roots.add_rows(table[NUMBER].to_numpy(), table[UID.name], is_copy_N)
        resolved = roots.resolved()
        classes, largest = _sizes(resolved)
        return Duplicates(
            stage=name,
            uses=planned.uses,
            rows=rows,
            duplicates=copied,
            sizes=tuple(classes),
            largest=largest[0][0] if largest else 1,
            near=near.name if near else None,
            limits=planned.stage.bounds.get(near.name) if near else None,
            cut=cut,
            recall=next((r["texts_drawn"] for r in recalls), None),
            reached=reached,
            groups=tuple(_groups(resolved, largest, numbers_of(state, planned.root), near, cut)),
        )


def _copies(
    state: RunState, name: str, other: Column, near: Column | None, cut: Cut | None
) -> Iterator[tuple[pa.Table, Bools, Bools]]:
    """Yields rows by shard, with (N,) whether each is a copy, and whether it is within the cut."""
    bound = {"keeper": (name, other.name), **({"near": (name, near.name)} if near else {})}
    for table in by_shard(state, state.plan.stages[name].root, bound):
        is_copy_N = table["keeper"].is_valid().to_numpy()
        reached_N = cut.reached(table["near"]) if cut else np.zeros(len(table), bool)
        if cut and other.names != "keeper":
            is_copy_N &= reached_N
        yield table, is_copy_N, reached_N


def _sizes(resolved: Partitions) -> tuple[list[int], list[tuple[int, int]]]:
    """Returns the number of groups per class, and the rows and root of the largest groups."""
    classes = np.zeros(len(SIZES), np.int64)
    largest: list[tuple[int, int]] = []
    for first_G, size_G in group_sizes(resolved):
        classes += sizes(size_G)
        top = np.argsort(-size_G, kind="stable")[:GROUPS]
        largest += zip(size_G[top].tolist(), first_G[top].tolist(), strict=True)
        largest = sorted(largest, key=lambda group: (-group[0], group[1]))[:GROUPS]
    return classes.tolist(), largest


def sizes(size_N: NDArray[np.int64]) -> list[int]:
    """Returns the number of groups per class of SIZES."""
    groups = np.searchsorted(SIZES, size_N[size_N > 1], side="right") - 1
    return list(map(int, np.bincount(groups, minlength=len(SIZES))))


def _groups(
    resolved: Partitions,
    largest: list[tuple[int, int]],
    numbers: Numbers,
    near: Column | None,
    cut: Cut | None,
) -> Iterator[Group]:
    for rows, first in largest:
        copies = members(resolved, first)
        index, past = np.arange(len(copies)), np.zeros(min(MEMBERS, len(copies)), bool)
        shown = evenly(index, MEMBERS)
        if near:
            value = pa.chunked_array([pa.array(copies["near"], from_pandas=True).cast(near.dtype)])
            shown = spread(index, value, near, MEMBERS)
            past = ~cut.reached(value.take(pa.array(shown))) if cut else past
        yield Group(
            rows=rows,
            places=tuple(numbers.places([first, *copies["row"][shown].tolist()])),
            past_cut=(False, *past.tolist()),
        )
