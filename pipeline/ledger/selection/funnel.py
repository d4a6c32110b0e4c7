"""Counts a pool's rows at every stage by reason, its texts, and each lost row at its first cause.

At every stage: rows = fine + not selected + failed + upstream + dropped; checked here and when a
stage finishes. A row that ends undefined at a select stage is counted at the earliest stage that
left the value out, so the causes add up to the rows lost.

Rows and reasons are counted from the records. Files are opened only for what records lack: first
causes, whether a stage failed by itself or for a missing input, uids, and the reasons of shards
made by several passes. Several shards are read at once; many of them by processes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.passes import NOT_SELECTED
from clipmill.metadata.record import ShardState
from clipmill.metadata.schema import UID
from clipmill.metadata.uid import halves
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.ledger.rows.ahead import ahead, read_parts
from clipmill.pipeline.ledger.rows.partitions import Partitions, structured, uid_hash
from clipmill.pipeline.ledger.rows.query import Unfinished, unfinished
from clipmill.pipeline.ledger.rows.stored import Place, json_artifacts
from clipmill.pipeline.ledger.selection.causes import (
    Cause,
    is_end,
    later_stages,
    left_out,
    losses,
    taken_by,
)
from clipmill.pipeline.ledger.selection.exports import Export, Subset, exports, subsets
from clipmill.pipeline.ledger.selection.reasons import ShardReasons
from clipmill.pipeline.ledger.selection.texts import StageTexts, stage_texts
from clipmill.pipeline.run_folder.state import RunState, StageState
from clipmill.pipeline.run_folder.words import BEFORE

ASKED_ROWS = 50_000_000  # largest pool whose uids are read
UIDS = [("a", "<u8"), ("b", "<u8")]  # halves of a uid


@dataclass(frozen=True, kw_only=True)
class StageRows:
    """Rows of one stage; `failed`, `upstream` and `dropped` by reason, the last in rule order.

    `failed`: the stage gave no value. `upstream`: a stage before it gave none. `dropped`: this
    select, or one before, did not keep them. `not_selected`: outside its `only:` mask. `listed` is
    of a list of uids: how many it names, and how many of them have no row.
    """

    stage: str
    uses: str
    rows: int
    fine: int
    not_selected: int
    listed: dict[str, Any] | None
    failed: dict[str, int]
    upstream: dict[str, int]
    dropped: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Rows that one stage lost for one reason; `example` is the uid of one, in hex."""

    stage: str
    reason: str
    rows: int
    example: str


@dataclass(frozen=True, kw_only=True)
class End:
    """A final select, which no later one builds on: `rows` = `kept` + the rows of its causes.

    A row that a later stage failed is not kept, even if the select keeps it. Causes are in the
    order of stages; within a select in the order of its rules, within other stages largest first.
    """

    stage: str
    rows: int
    kept: int
    causes: tuple[Loss, ...]


@dataclass(frozen=True, kw_only=True)
class Funnel:
    """The complete stages of a run; `unfinished` are the others.

    `repeated_uids` counts rows with the uid of an earlier row of their root, and is null for pools
    of more than 50 million rows, whose uids take long to read.
    """

    run: str
    unfinished: tuple[Unfinished, ...]
    repeated_uids: int | None
    stages: tuple[StageRows, ...]
    ends: tuple[End, ...]
    exports: tuple[Export, ...]
    subsets: tuple[Subset, ...] = ()
    texts: tuple[StageTexts, ...] = ()


def funnel(state: RunState) -> Funnel:
    """Returns rows by stage and reason, and the causes of each end; empty for evaluation runs.

    StageError if a stage does not add up.
    """
    if not any(stage.complete for stage in state.stages.values()):
        raise RecipeError("no stage is complete", str(state.run), "run the recipe first")
    done = state.row_stages
    counts: dict[str, Counter[Cause]] = {planned.name: Counter() for planned in done}
    later = {p.name: later_stages(state, p.name) for p in done if is_end(p, done)}
    lost: dict[str, Counter[Cause]] = {end: Counter() for end in later}
    places: dict[str, dict[Cause, Place]] = {end: {} for end in later}  # of one row each
    for root in dict.fromkeys(planned.root for planned in done):
        parts = read_parts(state, partial(_count, root, later), [*state.stages[root].shards])
        for counted, lost_here in chain.from_iterable(parts):
            for name, kinds in counted.items():
                counts[name].update(kinds)
            for end, cause, rows, place in lost_here:
                lost[end][cause] += rows
                places[end].setdefault(cause, place)
    roots = [state.stages[planned.name] for planned in done if planned.is_root]
    is_asked = sum(root.shards.rows for root in roots) <= ASKED_ROWS
    return Funnel(
        run=str(state.run),
        unfinished=unfinished(state, state.stages),
        repeated_uids=sum(_repeated(state, root) for root in roots) if is_asked else None,
        stages=tuple(_stage_rows(state, name, rows) for name, rows in counts.items()),
        ends=tuple(
            _end(state, end, counts[end], lost[end], places[end], stages)
            for end, stages in later.items()
        ),
        exports=exports(state),
        subsets=subsets(state),
        texts=stage_texts(state),
    )


_ShardRows = tuple[
    dict[str, Counter[tuple[str, str]]],  # by stage: rows by kind and reason
    list[tuple[str, Cause, int, Place]],  # end, first cause, its rows, the place of one
]


def _count(
    root: str, later: Mapping[str, list[str]], state: RunState, part: Sequence[int]
) -> list[_ShardRows]:
    """Counts some shards; `later` are the stages whose failures count as an end's own."""

    def read(shard: int) -> _ShardRows:
        reasons = ShardReasons(state, root, shard)
        lost = [
            (end, (stage, code), pc.sum(rows).as_py() or 0, (shard, pc.index(rows, True).as_py()))
            for end in later
            if end in reasons
            for stage, code, rows in losses(reasons, end, later[end])
        ]
        return {name: _counted(reasons, name) for name in reasons}, lost

    return list(ahead(state.run, read, part))


def _counted(reasons: ShardReasons, name: str) -> Counter[tuple[str, str]]:
    """Counts the rows of a stage's shard by kind and reason."""
    planned = reasons.state.plan.stages[name]
    upstream = Counter[str]() if planned.is_select else _upstream(reasons, name)
    counted: Counter[tuple[str, str]] = Counter()
    for code, rows in sorted(reasons.counts(name).items()):
        if code in ("", NOT_SELECTED):
            counted[code or "fine", ""] = rows
        elif planned.is_select or code == BEFORE:
            counted["dropped", code] = rows
        else:
            counted["upstream", code] = upstream[code]
            counted["failed", code] = rows - upstream[code]
    shard = reasons.state.stages[name].shards[reasons.shard]
    if counted.total() != shard.rows:
        raise StageError(
            f"{counted.total()} of {shard.rows} rows",
            f"stage '{name}', shard {reasons.shard}",
            "the shard is damaged: delete its record and run again",
        )
    return +counted


def _upstream(reasons: ShardReasons, name: str) -> Counter[str]:
    """Counts rows of a stage, by reason, that lack a value which an earlier stage left out."""
    plan = reasons.state.plan
    lossy = [
        source
        for source in plan.stages[name].sources
        if source in reasons and reasons.counts(source).keys() - {""}
    ]
    if not lossy or not reasons.counts(name).keys() - {"", NOT_SELECTED}:
        return Counter()
    own = reasons[name]
    is_late = pa.array(np.zeros(len(own), bool))
    for source in lossy:
        taken = {column for stage, column in taken_by(plan, name) if stage == source}
        rows = pc.and_(pc.is_valid(own), pc.is_valid(reasons[source]))
        is_late = pc.or_(is_late, left_out(source, taken, rows, reasons.missing))
    return Counter(own.filter(is_late).to_pylist())


def _repeated(state: RunState, stage: StageState) -> int:
    """Counts repeated uids of one root, in memory for one partition of uids."""
    stored, rows = state.stored[stage.planned.name], stage.shards.rows

    def read(shard: ShardState) -> list[pa.Table]:
        return list(stored.read(shard, [UID.name], 65_536))

    distinct = 0
    with closing(Partitions(rows, UIDS)) as partitions:
        for tables in ahead(state.run, read, stage.shards.values()):
            uid = pa.concat_tables(tables)[UID.name]
            if len(uid):
                a_N, b_N = halves(uid).T
                partition_N = partitions.partition_of(uid_hash(uid))
                partitions.add(partition_N, structured(UIDS, a=a_N, b=b_N))
        for partition in range(partitions.count):
            uids = pl.DataFrame(np.empty(0, UIDS))
            for piece in partitions.pieces(partition):  # np.unique takes eight times as long
                uids = pl.concat([uids, pl.DataFrame(piece)]).unique()
            distinct += len(uids)
    return rows - distinct


def _stage_rows(state: RunState, name: str, counts: Counter[tuple[str, str]]) -> StageRows:
    planned, dropped = state.plan.stages[name], _of("dropped", counts)
    return StageRows(
        stage=name,
        uses=planned.uses,
        rows=counts.total(),
        fine=counts["fine", ""],
        not_selected=counts[NOT_SELECTED, ""],
        listed=next(iter(json_artifacts(state.stages[name], "listed")), None),
        failed=_of("failed", counts),
        upstream=_of("upstream", counts),
        dropped={
            code: dropped[code] for code in [*planned.stage.reasons, *dropped] if code in dropped
        },
    )


def _of(kind: str, counts: Counter[tuple[str, str]]) -> dict[str, int]:
    return {code: rows for (found_kind, code), rows in counts.items() if found_kind == kind}


def _end(
    state: RunState,
    name: str,
    counts: Counter[Cause],
    lost: Counter[Cause],
    places: Mapping[Cause, Place],
    later_stages: Sequence[str],
) -> End:
    root = state.plan.stages[name].root
    rows = counts.total()
    later = sum(count for (stage, _), count in lost.items() if stage in later_stages)
    kept = counts["fine", ""] - later
    if kept + lost.total() != rows:
        raise StageError(
            f"{kept} kept and {lost.total()} lost make no {rows}",
            f"stage '{name}'",
            "this is a fault of ours: report it with the recipe",
        )
    return End(
        stage=name,
        rows=rows,
        kept=kept,
        causes=tuple(
            Loss(stage=s, reason=r, rows=lost[s, r], example=state.uid(root, *places[s, r]))
            for s, r in in_order(state, lost)
        ),
    )


def in_order(state: RunState, rows: Mapping[Cause, int]) -> list[Cause]:
    """Sorts causes by stage; within a select by its rules, within other stages largest first."""
    stages = state.plan.stages
    order = list(stages)

    def place(cause: Cause) -> tuple[int, int, int]:
        stage, code = cause
        rules = [*stages[stage].stage.reasons] if stages[stage].is_select else []
        return order.index(stage), rules.index(code) if code in rules else len(rules), -rows[cause]

    return sorted(rows, key=place)
