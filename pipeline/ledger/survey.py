"""The pool under one select stage: its scores, who is kept, and a few rows of each cause."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from metadata.schema import KEEP, UID
from metadata.uid import coin_hash
from pipeline.ledger.ahead import ahead
from pipeline.ledger.causes import (
    KEPT,
    Cause,
    causes,
    failed_later,
    later_stages,
    named_in,
    through_masks,
)
from pipeline.ledger.cuts import AtCuts, CutRows
from pipeline.ledger.groupings import group_of, groupings
from pipeline.ledger.groups import KeepRates, keep_rates
from pipeline.ledger.reasons import ShardReasons
from pipeline.ledger.relations import Relating, Relations
from pipeline.ledger.rules import columns_of, rules
from pipeline.ledger.scores import Score, ScoreColumn, histograms, score_columns
from pipeline.ledger.stored import SHOWN, Place, least, rows_at, selects_up_to, stored
from pipeline.planning.planned import Binding
from pipeline.run_folder.state import RunState

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


def survey(state: RunState, end: str) -> Survey:
    """The answer for a complete select stage; reads its columns over the whole pool, twice."""
    root = state.plan.stages[end].root
    columns = score_columns(state, end)
    counted = histograms(state, root, columns)
    at_cuts = AtCuts(state.plan, columns)
    groups = groupings(state, end)
    decided_by = rules(state, end, columns)
    bound = {
        **columns_of(decided_by),
        **{f"score {i}": column.where for i, column in enumerate(columns)},
        **{f"group {name}": where for name, where in groups.items()},
        "kept": (end, KEEP.name),
    }
    shards = stored(state, root, bound)
    rows_in = sum(map(shards.rows, range(len(shards))))
    relating = Relating(columns, decided_by, rows_in, state.plan.seed, end)
    done = [stage.planned for stage in state.stages.values() if stage.complete]
    later = later_stages(end, [planned for planned in done if planned.gives_rows])
    tallies: dict[str, Counter[tuple[str | None, Cause]]] = {name: Counter() for name in groups}
    chosen: dict[Cause, list[tuple[int, Place]]] = {}

    def read(index: int) -> tuple[pa.Table, ShardReasons, list[_Lost], list[_Lost]]:
        reasons = ShardReasons(state, root, numbers[index])
        failed = list(failed_later(reasons, end, later))
        return shards.table(index), reasons, failed, list(causes(reasons, end))

    numbers = sorted(state.stages[root].shards)
    every_shard = zip(numbers, ahead(state.run, read, range(len(numbers))), strict=True)
    for shard, (table, reasons, failed, dropped) in every_shard:
        keep_N = table["kept"].to_numpy()
        for *_, rows in failed:  # no less lost than what a select drops
            keep_N = keep_N & ~rows.to_numpy(zero_copy_only=False)
        for i, histogram in enumerate(counted):
            histogram.count(table[f"score {i}"], keep_N)
        bits_N = coin_hash(table[UID.name], seed=state.plan.seed, stage=end, purpose="report")
        lost = [*dropped, *failed]
        values = [table[f"score {i}"] for i in range(len(columns))]
        at_cuts.count(shard, values, bits_N, keep_N, lost)
        every = [(*KEPT, pa.array(keep_N)), *lost]
        for stage, code, rows in every:
            few = least(bits_N, rows.to_numpy(zero_copy_only=False))
            here = [(int(bits_N[i]), (shard, int(i))) for i in few]
            chosen[stage, code] = sorted(chosen.get((stage, code), []) + here)[:SHOWN]
        group_of_N = {name: group_of(name, table[f"group {name}"]) for name in groups}
        relating.count(table, values, group_of_N, keep_N)
        for name, tally in tallies.items():
            group = group_of_N[name].combine_chunks()
            for stage, code, rows in through_masks(reasons, every):
                for count in pc.value_counts(group.filter(rows)).to_pylist():
                    tally[count["values"], (stage, code)] += count["counts"]
    return Survey(
        stage=end,
        scores=tuple(histogram.score() for histogram in counted),
        cuts=at_cuts.rows(),
        groups={
            by: keep_rates(tally, _naming(state, groups[by], {cause for _, cause in tally}))
            for by, tally in tallies.items()
            if len({name for name, _ in tally}) > 1
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
            for cause, few in chosen.items()
        },
        relations=relating.relations(),
    )


def _naming(state: RunState, where: Binding, known: set[Cause]) -> set[Cause]:
    """The rules among the causes that name this column, in whatever select they stand."""
    return {
        cause
        for cause in known - {KEPT}
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
