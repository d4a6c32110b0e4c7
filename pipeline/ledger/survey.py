"""The pool under one select stage: its scores, who is kept, and a few rows of each cause."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from metadata.schema import KEEP, UID
from metadata.uid import coin_hash
from pipeline.ledger.causes import Cause, causes, named_in
from pipeline.ledger.groupings import group_of, groupings
from pipeline.ledger.groups import KeepRates, keep_rates
from pipeline.ledger.reasons import ShardReasons
from pipeline.ledger.scores import Score, ScoreColumn, histograms, score_columns
from pipeline.ledger.stored import SHOWN, Place, least, rows_at, selects_up_to, stored
from pipeline.run_folder.state import RunState

KEPT = ("", "")  # the cause of the rows that stay


class RowValues(NamedTuple):
    """Where a row stands, and its values in the columns that decided."""

    place: Place
    values: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Survey:
    """One select stage. `groups` has keep-rates by language, source and domain, where the pool has
    several; `asked_for` names those that a rule reads. `samples` are chosen by a hash of the uid.
    """

    stage: str
    scores: tuple[Score, ...]
    groups: dict[str, KeepRates]
    asked_for: frozenset[str]
    samples: dict[Cause, tuple[RowValues, ...]]


def survey(state: RunState, end: str) -> Survey:
    """The answer for a complete select stage; reads its columns over the whole pool, twice."""
    root = state.plan.stages[end].root
    columns = score_columns(state, end)
    counted = histograms(state, root, columns)
    groups = groupings(state, end)
    bound = {
        **{f"score {i}": column.where for i, column in enumerate(columns)},
        **{f"group {name}": where for name, where in groups.items()},
        "kept": (end, KEEP.name),
    }
    shards = stored(state, root, bound)
    tallies: dict[str, Counter[tuple[str | None, bool]]] = {name: Counter() for name in groups}
    chosen: dict[Cause, list[tuple[int, Place]]] = {}
    for index, shard in enumerate(sorted(state.stages[root].shards)):
        table = shards.table(index)
        keep_N = table["kept"].to_numpy()
        for i, histogram in enumerate(counted):
            histogram.count(table[f"score {i}"], keep_N)
        for name, tally in tallies.items():
            _tally(group_of(name, table[f"group {name}"]), table["kept"], tally)
        bits_N = coin_hash(table[UID.name], seed=state.plan.seed, stage=end, purpose="report")
        lost = causes(ShardReasons(state, root, shard), end)
        for stage, code, rows in ((*KEPT, pa.array(keep_N)), *lost):
            few = least(bits_N, rows.to_numpy(zero_copy_only=False))
            here = [(int(bits_N[i]), (shard, int(i))) for i in few]
            chosen[stage, code] = sorted(chosen.get((stage, code), []) + here)[:SHOWN]
    read = {
        column
        for planned in selects_up_to(state, end)
        for _, column in planned.bindings[0].values()
    }
    return Survey(
        stage=end,
        scores=tuple(histogram.score() for histogram in counted),
        groups={
            by: keep_rates(tally)
            for by, tally in tallies.items()
            if len({name for name, _ in tally}) > 1
        },
        asked_for=frozenset(read & groups.keys()),
        samples={
            cause: _with_values(state, columns, cause, [place for _, place in few])
            for cause, few in chosen.items()
        },
    )


def _tally(
    group: pa.ChunkedArray, kept: pa.ChunkedArray, into: Counter[tuple[str | None, bool]]
) -> None:
    table = pa.table({"group": group, "kept": kept}).unify_dictionaries()
    counts = table.group_by(["group", "kept"]).aggregate([([], "count_all")])
    for count in counts.to_pylist():
        into[count["group"], count["kept"]] += count["count_all"]


def _with_values(
    state: RunState, columns: list[ScoreColumn], cause: Cause, places: list[Place]
) -> tuple[RowValues, ...]:
    """The rows with the values of the columns that the reason names; of kept rows, of all that have
    a cut."""
    deciding = {column.name: column.where for column in columns if column.cuts}
    if cause != KEPT:
        deciding = named_in(state.plan, *cause)
    return tuple(map(RowValues, places, rows_at(state, deciding, places)))
