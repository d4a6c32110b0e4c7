"""Compares two selections of one pool, row by row: gains, losses, and moves between first causes.

Counts are also by language, source, domain, size, cluster and concept, with example rows per move.
Each row is counted once per side: kept, or lost at its first cause, as in the funnel.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.outputs import Outputs
from clipmill.metadata.schema import CONCEPT_IDS
from clipmill.metadata.uid import coin_hash
from clipmill.pipeline.ledger.rows.stored import SHOWN, Place, artifacts, binding, stored
from clipmill.pipeline.ledger.selection.causes import named_in
from clipmill.pipeline.ledger.selection.joined import ABSENT, Joined, joined, same_rows
from clipmill.pipeline.ledger.selection.sides import Side
from clipmill.pipeline.planning.planned import Binding
from clipmill.pipeline.run_folder import lock
from clipmill.pipeline.run_folder.variants import Changes, changes

# Shapes: N rows of a shard, M of them that are counted.

MOST_CONCEPTS = 12  # concepts with the largest change


@dataclass(frozen=True, kw_only=True)
class ConceptRows:
    """One entry of a list of concepts, and the kept rows that name it."""

    entry: str
    before: int
    after: int


class ConceptTally:
    """Counts concepts if both sides store them, for lists whose entries a balance has named."""

    def __init__(self, *sides: Side) -> None:
        bound = [binding(side.state, side.stage, CONCEPT_IDS.name) for side in sides]
        self.entries = [_entries(side, ids) for side, ids in zip(sides, bound, strict=True)]
        self.counts = [np.zeros(len(entries), np.int64) for entries in self.entries]
        self.shards = [
            stored(side.state, side.root, {"ids": ids})
            for side, ids in zip(sides, bound, strict=True)
            if ids and all(self.entries)
        ]

    def count(self, which: int, index: int, outcome_N: NDArray[np.int32]) -> None:
        """Adds one shard of one side."""
        if self.shards:
            ids = self.shards[which].table(index)["ids"]
            concept_M = pc.list_flatten(ids.filter(pa.array(outcome_N == 0))).to_numpy()
            self.counts[which] += np.bincount(concept_M, minlength=len(self.counts[which]))

    def changed(self) -> tuple[ConceptRows, ...]:
        """Returns the entries whose counts differ most."""
        before, after = Counter[str](), Counter[str]()
        for rows, entries, counts in zip((before, after), self.entries, self.counts, strict=True):
            for entry, count in zip(entries, counts.tolist(), strict=True):
                rows[entry] += count  # several languages may have an entry
        moved = [entry for entry in {**before, **after} if before[entry] != after[entry]]
        moved.sort(key=lambda entry: (-abs(after[entry] - before[entry]), entry))
        return tuple(
            ConceptRows(entry=entry, before=before[entry], after=after[entry])
            for entry in moved[:MOST_CONCEPTS]
        )


def _entries(side: Side, ids: Binding | None) -> list[str]:
    """Returns the entries by number, from the first balance of these concepts, if any."""
    for name, stage in side.state.stages.items() if ids else ():
        files = artifacts(stage, "concepts").values()
        bindings = side.state.plan.stages[name].bindings
        if files and bindings and bindings[0].get(CONCEPT_IDS.name) == ids:
            (file, *_) = files
            return pl.read_parquet(Outputs(stage.folder).read(file))["entry"].to_list()
    return []


LARGEST = 20  # groups of each kind, those with the largest change
Kind = Literal["gained", "lost", "moved", "kept", "stayed"]
KINDS: tuple[Kind, ...] = ("gained", "lost", "moved", "kept", "stayed")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A row's outcome on one side: `kept`, `lost` at a first cause, or `absent` from the pool."""

    what: Literal["kept", "lost", "absent"]
    stage: str = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class MovedRow:
    """A row, and its place on each side; null if it is absent there."""

    uid: str
    before: Place | None
    after: Place | None


@dataclass(frozen=True, kw_only=True)
class Move:
    """Rows with one outcome before and one after; `examples` are chosen by a hash of their uid.

    `gained` and `lost`: kept on one side only. `moved`: lost on both, for different causes. `kept`:
    on both. `stayed`: lost on both for the same cause; two rules of one stage over the same columns
    count as the same, with another threshold.
    """

    kind: Kind
    before: Outcome
    after: Outcome
    rows: int
    examples: tuple[MovedRow, ...]


@dataclass(frozen=True, kw_only=True)
class GroupRows:
    """Rows of one group kept on each side: `after` = `before` + `gained` - `lost`."""

    name: str
    before: int
    after: int
    gained: int
    lost: int


@dataclass(frozen=True, kw_only=True)
class Selection:
    """One side: rows of its pool, and those that its stage keeps.

    `left` are incomplete stages of its recipe; `working` names the current holder of the run.
    """

    asked: str
    run: str
    variant: int
    recipe: str
    stage: str
    rows: int
    kept: int
    left: tuple[str, ...]
    working: str = ""


@dataclass(frozen=True, kw_only=True)
class Diff:
    """Two selections. `both` are kept on both sides, `stayed` and `moved` on neither: see `Move`.

    `joined` says how rows were matched: by `place`, or by `uid` if the pools differ in order.
    `groups` are empty if no row was gained or lost.
    """

    before: Selection
    after: Selection
    changes: Changes
    joined: Literal["place", "uid"]
    both: int
    gained: int
    lost: int
    moved: int
    stayed: int
    moves: tuple[Move, ...]
    groups: dict[str, tuple[GroupRows, ...]]
    concepts: tuple[ConceptRows, ...]


class Row(NamedTuple):
    """An example row; sorts by the hash of its uid, then by its places."""

    coin: int
    before: Place
    after: Place
    uid: str


@dataclass
class Count:
    """Counts over all pieces of the two pools."""

    rows: Counter[tuple[int, int]] = field(default_factory=Counter)  # by outcome before and after
    examples: dict[tuple[int, int], list[Row]] = field(default_factory=dict)
    groups: dict[str, dict[str | None, NDArray[np.int64]]] = field(default_factory=dict)

    def add(self, rows: Joined, seed: int) -> None:
        before_N, after_N = (outcome_N.astype(np.int64) for outcome_N in rows.outcome_AN)
        cell_N = (before_N - ABSENT) << 32 | (after_N - ABSENT)  # both from 0, in one number
        bits_N = coin_hash(rows.uid, seed=seed, stage="diff", purpose="samples")
        order_N = np.lexsort((np.arange(len(bits_N)), bits_N, cell_N))
        cells, start, counts = np.unique(cell_N[order_N], return_index=True, return_counts=True)
        for cell, begin, count in zip(cells.tolist(), start.tolist(), counts.tolist(), strict=True):
            key = ((cell >> 32) + ABSENT, (cell & 0xFFFFFFFF) + ABSENT)
            self.rows[key] += count
            if key != (0, 0):
                examples = order_N[begin : begin + min(count, SHOWN)].tolist()
                found = [self._row(rows, bits_N, i) for i in examples]
                self.examples[key] = sorted(self.examples.get(key, []) + found)[:SHOWN]
        kept_N, now_N = before_N == 0, after_N == 0
        for name, column in rows.groups.items():
            self._group(self.groups.setdefault(name, {}), column, kept_N, now_N)

    def _row(self, rows: Joined, bits_N: NDArray[np.uint64], i: int) -> Row:
        (a, b), (c, d) = (place_N2[i].tolist() for place_N2 in rows.place_AN2)
        return Row(int(bits_N[i]), (a, b), (c, d), rows.uid[i].as_py().hex())

    def _group(
        self,
        tally: dict[str | None, NDArray[np.int64]],
        column: pa.ChunkedArray,
        kept_N: NDArray[np.bool_],
        now_N: NDArray[np.bool_],
    ) -> None:
        is_any_N = kept_N | now_N
        group_M = column.filter(pa.array(is_any_N)).unify_dictionaries().combine_chunks()
        kept_M, now_M = kept_N[is_any_N], now_N[is_any_N]
        names = [*group_M.dictionary.to_pylist(), None]
        code_M = group_M.indices.fill_null(len(names) - 1).to_numpy()
        parts = (kept_M, now_M, now_M & ~kept_M, kept_M & ~now_M)
        counts = [np.bincount(code_M[rows_M], minlength=len(names)) for rows_M in parts]
        for name, rows_4 in zip(names, np.transpose(counts), strict=True):
            if rows_4.any():
                tally[name] = tally.get(name, 0) + rows_4


def diff(before: Side, after: Side) -> Diff:
    """Compares two sides, both read shard by shard. RecipeError if they are of different pools."""
    sides, count = (before, after), Count()
    concepts = ConceptTally(before, after)
    for rows in joined(sides, concepts.count):
        count.add(rows, before.state.plan.seed)
    moves = [
        _move(cell, rows, sides, count.examples.get(cell, [])) for cell, rows in count.rows.items()
    ]
    by_kind: Counter[Kind] = Counter()
    for move in moves:
        by_kind[move.kind] += move.rows
    order = {outcome: i for i, outcome in enumerate([*before.outcomes, *after.outcomes])}
    has_changed = by_kind["gained"] or by_kind["lost"]

    def rank(move: Move) -> tuple[int, ...]:
        causes = [(outcome.stage, outcome.reason) for outcome in (move.before, move.after)]
        return KINDS.index(move.kind), -move.rows, *(order.get(cause, -1) for cause in causes)

    return Diff(
        before=_selection(before, count, 0),
        after=_selection(after, count, 1),
        changes=changes(before.ran, after.ran),
        joined="place" if same_rows(before, after) else "uid",
        both=by_kind["kept"],
        gained=by_kind["gained"],
        lost=by_kind["lost"],
        moved=by_kind["moved"],
        stayed=by_kind["stayed"],
        moves=tuple(sorted(moves, key=rank)),
        groups={
            name: _group_rows(tally)
            for name, tally in count.groups.items()
            if has_changed and tally
        },
        concepts=concepts.changed() if has_changed else (),
    )


def _move(cell: tuple[int, int], rows: int, sides: tuple[Side, Side], examples: list[Row]) -> Move:
    was, now = (_outcome(side, index) for side, index in zip(sides, cell, strict=True))
    kind: Kind = "stayed" if was == now or _is_one_rule(sides, was, now) else "moved"
    if "kept" in (was.what, now.what):
        kind = "gained" if was.what != "kept" else "lost" if now.what != "kept" else "kept"
    return Move(
        kind=kind,
        before=was,
        after=now,
        rows=rows,
        examples=tuple(
            MovedRow(
                uid=row.uid,
                before=None if was.what == "absent" else row.before,
                after=None if now.what == "absent" else row.after,
            )
            for row in examples
        ),
    )


def _is_one_rule(sides: tuple[Side, Side], was: Outcome, now: Outcome) -> bool:
    """Returns whether both are rules of the stage over the same columns, with other thresholds."""
    if was.what != "lost" or now.what != "lost" or was.stage != now.stage:
        return False
    named = [
        set(named_in(side.state.plan, outcome.stage, outcome.reason))
        for side, outcome in zip(sides, (was, now), strict=True)
    ]
    return named[0] == named[1] != set()


def _outcome(side: Side, index: int) -> Outcome:
    if index == ABSENT:
        return Outcome(what="absent")
    stage, reason = side.outcomes[index]
    return Outcome(what="lost", stage=stage, reason=reason) if index else Outcome(what="kept")


def _selection(side: Side, count: Count, which: int) -> Selection:
    lease = lock.holder(side.state.run)
    rows = {cell: rows for cell, rows in count.rows.items() if cell[which] != ABSENT}
    return Selection(
        asked=side.name,
        run=str(side.state.run),
        variant=side.variant.number,
        recipe=side.ran["name"],
        stage=side.stage,
        rows=sum(rows.values()),
        kept=sum(rows for cell, rows in rows.items() if cell[which] == 0),
        left=tuple(name for name, stage in side.state.stages.items() if not stage.complete),
        working=str(lease) if lease else "",
    )


def _group_rows(tally: dict[str | None, NDArray[np.int64]]) -> tuple[GroupRows, ...]:
    """Returns the groups with the largest change, then the largest; all others together."""
    counts: dict[str | None, Any] = {name: rows.tolist() for name, rows in tally.items()}
    ranked = sorted(counts, key=lambda n: (-counts[n][2] - counts[n][3], -counts[n][1], n or ""))
    shown = [(name or "(none)", counts[name]) for name in ranked[:LARGEST]]
    if rest := ranked[LARGEST:]:
        many = f"{len(rest):,} {'other' if len(rest) == 1 else 'others'}"
        shown.append((many, np.sum([counts[name] for name in rest], axis=0).tolist()))
    return tuple(
        GroupRows(name=name, before=was, after=now, gained=gained, lost=lost)
        for name, (was, now, gained, lost) in shown
    )
