"""The pool under one select stage: its scores, who is kept, and a few rows of each cause."""

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
from clipmill.pipeline.ledger.ahead import ahead, of_parts
from clipmill.pipeline.ledger.causes import (
    KEPT,
    Cause,
    causes,
    failed_later,
    later_stages,
    named_in,
    through_masks,
)
from clipmill.pipeline.ledger.cuts import AtCuts, CutRows
from clipmill.pipeline.ledger.groupings import group_of, groupings
from clipmill.pipeline.ledger.groups import KeepRates, Tally, keep_rates
from clipmill.pipeline.ledger.reasons import ShardReasons
from clipmill.pipeline.ledger.relations import Relating, Relations
from clipmill.pipeline.ledger.rules import columns_of, rules
from clipmill.pipeline.ledger.scores import Histogram, Score, ScoreColumn, histograms, score_columns
from clipmill.pipeline.ledger.stored import SHOWN, Place, least, rows_at, selects_up_to, stored
from clipmill.pipeline.planning.planned import Binding
from clipmill.pipeline.run_folder.state import RunState

WORTH = 200  # shards of which it is worth a process for each CPU
_Lost = tuple[str, str, pa.Array]  # stage, reason, and a mask of rows


class RowValues(NamedTuple):
    """Where a row stands, and its values in the columns that decided."""

    place: Place
    values: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Survey:
    """One select stage. `groups` has keep-rates by language, source, domain and size, where it has
    several; `readers` the selects that read what each of them groups by, for whatever. `samples`
    are chosen by a hash of the uid, those of `cuts` by their value.
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
    """What is counted of some shards: rows of each cause are chosen by hash."""

    histograms: list[Histogram]
    at_cuts: AtCuts
    relating: Relating
    tallies: dict[str, Tally]  # by what rows are grouped by
    chosen: dict[Cause, list[tuple[int, Place]]]  # hash and place

    def choose(self, cause: Cause, rows: list[tuple[int, Place]]) -> None:
        self.chosen[cause] = sorted(self.chosen.get(cause, []) + rows)[:SHOWN]

    def add(self, other: "_Counted") -> None:
        """What was counted of later shards."""
        for own, its in zip(self.histograms, other.histograms, strict=True):
            own.add(its)
        self.at_cuts.add(other.at_cuts)
        self.relating.add(other.relating)
        for name, tally in other.tallies.items():
            self.tallies[name].add(tally)
        for cause, rows in other.chosen.items():
            self.choose(cause, rows)


def survey(state: RunState, end: str) -> Survey:
    """The answer for a complete select stage; reads its columns over the whole pool, twice.

    Of many shards a process for each CPU reads them.
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
    found = _Counted(
        histograms(state, root, columns),
        AtCuts(columns),
        Relating(columns, decided_by, state.stages[root].shards.rows, state.plan.seed, end),
        {name: Tally() for name in groups},
        {},
    )
    count = partial(_count, end, bound, deepcopy(found))
    for counted in of_parts(state, count, range(state.stages[root].total or 0), WORTH):
        found.add(counted)
    return Survey(
        stage=end,
        scores=tuple(histogram.score() for histogram in found.histograms),
        cuts=found.at_cuts.rows(),
        groups={
            by: keep_rates(tally, _naming(state, groups[by], tally.causes))
            for by, tally in found.tallies.items()
            if len(tally) > 1
        },
        readers={
            by: tuple(
                planned.name
                for planned in selects_up_to(state, end)
                if where in planned.bindings[0].values()
            )
            for by, where in groups.items()
        },
        samples={
            cause: _with_values(state, columns, cause, [place for _, place in few])
            for cause, few in found.chosen.items()
        },
        relations=found.relating.relations(),
    )


def _count(
    end: str, bound: Mapping[str, Binding], nothing: _Counted, state: RunState, part: Sequence[int]
) -> _Counted:
    """Some shards, added to nothing."""
    found = deepcopy(nothing)
    root = state.plan.stages[end].root
    shards = stored(state, root, bound)
    done = [stage.planned for stage in state.stages.values() if stage.complete]
    later = later_stages(end, [planned for planned in done if planned.gives_rows])

    def read(shard: int) -> tuple[pa.Table, ShardReasons, list[_Lost], list[_Lost]]:
        reasons = ShardReasons(state, root, shard)
        failed = list(failed_later(reasons, end, later))
        return shards.table(shard), reasons, failed, list(causes(reasons, end))

    every_shard = zip(part, ahead(state.run, read, part), strict=True)
    for shard, (table, reasons, failed, dropped) in every_shard:
        keep_N = table["kept"].to_numpy()
        for *_, rows in failed:  # no less lost than what a select drops
            keep_N = keep_N & ~_mask(rows)
        values = [table[f"score {i}"] for i in range(len(found.histograms))]
        for value, histogram in zip(values, found.histograms, strict=True):
            histogram.count(value, keep_N)
        bits_N = coin_hash(table[UID.name], seed=state.plan.seed, stage=end, purpose="report")
        lost = [*dropped, *failed]
        found.at_cuts.count(state.plan, shard, values, bits_N, keep_N, lost)
        every = [(*KEPT, pa.array(keep_N)), *lost]
        for stage, code, rows in every:
            few = least(bits_N, _mask(rows))
            found.choose((stage, code), [(int(bits_N[i]), (shard, int(i))) for i in few])
        group_of_N = {name: group_of(name, table[f"group {name}"]) for name in found.tallies}
        found.relating.count(table, values, group_of_N, keep_N)
        if group_of_N:
            through = list(through_masks(reasons, every))
            here = [(stage, code) for stage, code, _ in through]
            rows_CN = [_mask(rows) for *_, rows in through]
            for name, tally in found.tallies.items():
                tally.count(group_of_N[name].combine_chunks(), here, rows_CN)
    return found


def _mask(rows: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(rows.to_numpy(zero_copy_only=False))


def _naming(state: RunState, where: Binding, known: Iterable[Cause]) -> set[Cause]:
    """The rules among the causes that name this column, in whatever select they stand."""
    return {
        cause
        for cause in set(known) - {KEPT}
        if state.plan.stages[cause[0]].is_select and where in named_in(state.plan, *cause).values()
    }


def _with_values(
    state: RunState, columns: list[ScoreColumn], cause: Cause, places: list[Place]
) -> tuple[RowValues, ...]:
    """The rows with the values of the columns that the reason names; of kept rows, of all that have
    a cut."""
    deciding = {column.name: column.where for column in columns if column.cuts}
    if cause != KEPT:
        deciding = named_in(state.plan, *cause)
    return tuple(map(RowValues, places, rows_at(state, deciding, places)))
