"""Surveys the pool under one select stage: scores, keep-rates, samples of each cause, and the rows
nearest to each threshold.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import KEEP, UID
from clipmill.metadata.uid import coin_hash
from clipmill.pipeline.ledger.rows.ahead import ahead, read_parts
from clipmill.pipeline.ledger.rows.stored import SHOWN, Place, least, rows_at, selects_up_to, stored
from clipmill.pipeline.ledger.selection.causes import (
    KEPT,
    Cause,
    later_stages,
    losses,
    named_in,
    through_masks,
)
from clipmill.pipeline.ledger.selection.groups import (
    KeepRates,
    Tally,
    group_of,
    groupings,
    keep_rates,
)
from clipmill.pipeline.ledger.selection.reasons import ShardReasons
from clipmill.pipeline.ledger.selection.relations import RelationCounts, Relations
from clipmill.pipeline.ledger.selection.rules import columns_of, rules
from clipmill.pipeline.ledger.selection.scores import (
    Histogram,
    Score,
    ScoreColumn,
    ScoreCut,
    histograms,
    numbers,
    score_columns,
)
from clipmill.pipeline.planning.plan import Plan
from clipmill.pipeline.planning.planned import Binding
from clipmill.pipeline.run_folder.state import RunState

# Shapes: N rows of a shard, C cuts.

NEAREST = 6  # rows shown on either side
Near = tuple[float, int, Place, float]  # distance, hash, place, value


@dataclass(frozen=True, kw_only=True)
class CutRows:
    """A threshold on one column: the rows beyond it, and those beyond no other threshold.

    `kept` and `dropped` are the nearest kept rows and the nearest rows that it dropped, each with
    its value, by value. A row whose value equals the last one that a size keeps is not beyond it.
    """

    column: str
    cut: ScoreCut
    beyond: int
    alone: int
    kept: tuple[tuple[Place, float], ...]
    dropped: tuple[tuple[Place, float], ...]

    @property
    def is_upper(self) -> bool:
        """Returns whether the rows below the threshold are kept."""
        return self.cut.sign in ("<", "<=")

    @property
    def nearest_kept(self) -> tuple[tuple[Place, float], ...]:
        """Returns the nearest kept rows, nearest first; under an upper bound values above 0."""
        if not self.is_upper:
            return self.kept
        return tuple((place, value) for place, value in self.kept[::-1] if value > 0)


class CutCounts:
    """Counts the rows at every cut, shard by shard."""

    def __init__(self, columns: Sequence[ScoreColumn]) -> None:
        self.cuts = [(i, column, cut) for i, column in enumerate(columns) for cut in column.cuts]
        self.beyond_C = np.zeros(len(self.cuts), np.int64)
        self.alone_C = np.zeros(len(self.cuts), np.int64)
        self.near: list[dict[bool, list[Near]]] = [{True: [], False: []} for _ in self.cuts]

    def count(
        self,
        plan: Plan,
        shard: int,
        values: Sequence[pa.ChunkedArray],
        bits_N: NDArray[np.uint64],
        keep_N: NDArray[np.bool_],
        causes: Sequence[tuple[str, str, pa.Array]],
    ) -> None:
        """Adds the values of one shard, a column each; `causes` are of the rows lost."""
        beyond_CN = [cut.beyond(values[i]) for i, _, cut in self.cuts]
        beyond_by_N = np.sum(beyond_CN, axis=0) if beyond_CN else 0
        for index, (i, column, cut) in enumerate(self.cuts):
            self.beyond_C[index] += beyond_CN[index].sum()
            self.alone_C[index] += (beyond_CN[index] & (beyond_by_N == 1)).sum()
            went_N = np.zeros(len(keep_N), bool)
            for stage, code, rows in causes:
                if stage == cut.stage and _names(plan, (stage, code), column):
                    went_N |= rows.to_numpy(zero_copy_only=False)
            number_N = numbers(values[i])
            if not cut.is_size:  # of values equal to the last one kept, it drops some
                went_N &= beyond_CN[index]
            for is_kept, rows_N in ((True, keep_N), (False, went_N)):
                rows_K = np.flatnonzero(rows_N & ~np.isnan(number_N))
                apart_K = np.abs(number_N[rows_K] - cut.limit)
                nearest = np.lexsort((bits_N[rows_K], apart_K))[:NEAREST]
                rows_near = [
                    (float(apart_K[k]), int(bits_N[row]), (shard, int(row)), float(number_N[row]))
                    for k, row in zip(nearest, rows_K[nearest], strict=True)
                ]
                self._add_near(index, is_kept, rows_near)

    def add(self, other: "CutCounts") -> None:
        """Adds another's counts of the same cuts, of later shards."""
        self.beyond_C += other.beyond_C
        self.alone_C += other.alone_C
        for index, sides in enumerate(other.near):
            for is_kept, near in sides.items():
                self._add_near(index, is_kept, near)

    def _add_near(self, index: int, is_kept: bool, near: list[Near]) -> None:
        self.near[index][is_kept] = sorted(self.near[index][is_kept] + near)[:NEAREST]

    def rows(self) -> tuple[CutRows, ...]:
        """Returns the result at every cut, in the order of the columns."""

        def by_value(near: list[Near]) -> tuple[tuple[Place, float], ...]:
            ranked = sorted(near, key=lambda row: (row[3], row[1]))
            return tuple((place, value) for _, _, place, value in ranked)

        return tuple(
            CutRows(
                column=column.name,
                cut=cut,
                beyond=int(self.beyond_C[index]),
                alone=int(self.alone_C[index]),
                kept=by_value(self.near[index][True]),
                dropped=by_value(self.near[index][False]),
            )
            for index, (_, column, cut) in enumerate(self.cuts)
        )


def _names(plan: Plan, cause: Cause, column: ScoreColumn) -> bool:
    """Returns whether the reason names the column, or the stage's own column as it writes it."""
    named = named_in(plan, *cause).values()
    return column.where in named or (column.where[0] == cause[0] and column.name in cause[1])


WORTH = 200  # shards from which a process for each CPU pays
_Lost = tuple[str, str, pa.Array]  # stage, reason, and a mask of rows


class RowValues(NamedTuple):
    """A row's place, and its values in the columns that its reason names; if kept, with cuts."""

    place: Place
    values: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Survey:
    """One select stage over its pool.

    `groups` has keep-rates by language, source, domain and size, if it has several; `readers` the
    selects that read each grouping's column. `samples` are chosen by a hash of the uid, those of
    `cuts` by value.
    """

    stage: str
    scores: tuple[Score, ...]
    cuts: tuple[CutRows, ...]
    groups: dict[str, KeepRates]
    readers: dict[str, tuple[str, ...]]
    samples: dict[Cause, tuple[RowValues, ...]]
    relations: Relations


@dataclass
class _Counted:
    """Counts over some shards; samples of each cause are chosen by hash."""

    histograms: list[Histogram]
    cut_counts: CutCounts
    relation_counts: RelationCounts
    tallies: dict[str, Tally]  # by grouping
    chosen: dict[Cause, list[tuple[int, Place]]]  # hash and place

    def choose(self, cause: Cause, rows: list[tuple[int, Place]]) -> None:
        self.chosen[cause] = sorted(self.chosen.get(cause, []) + rows)[:SHOWN]

    def add(self, other: "_Counted") -> None:
        """Adds the counts of later shards."""
        for own, other_histogram in zip(self.histograms, other.histograms, strict=True):
            own.add(other_histogram)
        self.cut_counts.add(other.cut_counts)
        self.relation_counts.add(other.relation_counts)
        for name, tally in other.tallies.items():
            self.tallies[name].add(tally)
        for cause, rows in other.chosen.items():
            self.choose(cause, rows)


def survey(state: RunState, end: str) -> Survey:
    """Surveys a complete select stage; reads its columns over the whole pool, twice.

    From WORTH shards on, a process for each CPU reads them.
    """
    root = state.plan.stages[end].root
    columns = score_columns(state, end)
    groups = groupings(state, end)
    decided_by = rules(state, end, columns)
    bound = {
        **columns_of(decided_by),
        **{f"score {i}": column.where for i, column in enumerate(columns)},
        **{f"group {name}": where for name, where in groups.items()},
        "kept": (end, KEEP.name),
    }
    total = _Counted(
        histograms(state, root, columns),
        CutCounts(columns),
        RelationCounts(columns, decided_by, state.stages[root].shards.rows, state.plan.seed, end),
        {name: Tally() for name in groups},
        {},
    )
    count = partial(_count, end, bound, deepcopy(total))
    for counted in read_parts(state, count, range(state.stages[root].total or 0), WORTH):
        total.add(counted)
    chosen = {cause: [place for _, place in hashed] for cause, hashed in total.chosen.items()}
    deciding = {cause: named_in(state.plan, *cause) for cause in chosen if cause != KEPT}
    deciding[KEPT] = {column.name: column.where for column in columns if column.cuts}
    return Survey(
        stage=end,
        scores=tuple(histogram.score() for histogram in total.histograms),
        cuts=total.cut_counts.rows(),
        groups={
            by: keep_rates(tally, _naming(state, groups[by], tally.causes))
            for by, tally in total.tallies.items()
            if len(tally) > 1
        },
        readers={
            by: tuple(p.name for p in selects_up_to(state, end) if where in p.bindings[0].values())
            for by, where in groups.items()
        },
        samples={
            cause: tuple(map(RowValues, places, rows_at(state, deciding[cause], places)))
            for cause, places in chosen.items()
        },
        relations=total.relation_counts.relations(),
    )


def _count(
    end: str, bound: Mapping[str, Binding], nothing: _Counted, state: RunState, part: Sequence[int]
) -> _Counted:
    """Counts some shards, starting from `nothing`."""
    counts = deepcopy(nothing)
    root = state.plan.stages[end].root
    shards = stored(state, root, bound)
    later = later_stages(state, end)

    def read(shard: int) -> tuple[pa.Table, ShardReasons, list[_Lost]]:
        reasons = ShardReasons(state, root, shard)
        return shards.table(shard), reasons, list(losses(reasons, end, later))

    every_shard = zip(part, ahead(state.run, read, part), strict=True)
    for shard, (table, reasons, lost) in every_shard:
        keep_N = table["kept"].to_numpy()
        for *_, rows in lost:
            keep_N = keep_N & ~_mask(rows)
        values = [table[f"score {i}"] for i in range(len(counts.histograms))]
        for value, histogram in zip(values, counts.histograms, strict=True):
            histogram.count(value, keep_N)
        bits_N = coin_hash(table[UID.name], seed=state.plan.seed, stage=end, purpose="report")
        counts.cut_counts.count(state.plan, shard, values, bits_N, keep_N, lost)
        every = [(*KEPT, pa.array(keep_N)), *lost]
        for stage, code, rows in every:
            chosen = least(bits_N, _mask(rows))
            counts.choose((stage, code), [(int(bits_N[i]), (shard, int(i))) for i in chosen])
        group_of_N = {name: group_of(name, table[f"group {name}"]) for name in counts.tallies}
        counts.relation_counts.count(table, values, group_of_N, keep_N)
        if group_of_N:
            through = list(through_masks(reasons, every))
            causes_here = [(stage, code) for stage, code, _ in through]
            rows_CN = [_mask(rows) for *_, rows in through]
            for name, tally in counts.tallies.items():
                tally.count(group_of_N[name].combine_chunks(), causes_here, rows_CN)
    return counts


def _mask(rows: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(rows.to_numpy(zero_copy_only=False))


def _naming(state: RunState, where: Binding, known: Iterable[Cause]) -> set[Cause]:
    """Returns the rules of any select among the causes that name this column."""
    return {
        cause
        for cause in set(known) - {KEPT}
        if state.plan.stages[cause[0]].is_select and where in named_in(state.plan, *cause).values()
    }
