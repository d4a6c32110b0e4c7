"""Explains a select stage's decision on one row: its values beside the thresholds, the distances,
and its rank if the select keeps the top k.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.passes import NOT_SELECTED
from clipmill.metadata.schema import KEEP, REASON, UID
from clipmill.pipeline.ledger.rows.near import naming, nearness_of
from clipmill.pipeline.ledger.rows.stage_row import Keeper, StageRow
from clipmill.pipeline.ledger.rows.stored import Place, selects_up_to, stored
from clipmill.pipeline.ledger.selection.causes import named_in, trace
from clipmill.pipeline.ledger.selection.reasons import checked_columns
from clipmill.pipeline.ledger.selection.scores import GOES, as_compared
from clipmill.pipeline.planning.planned import Binding, PlannedStage
from clipmill.pipeline.planning.selects import explanation, thresholds_of
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.run_folder.words import UNDEFINED
from clipmill.pipeline.stage import Stage, Threshold
from clipmill.pipeline.terminal import cut, one_line
from clipmill.pipeline.verdicts import Conditions, Tells

BATCH_ROWS = 65_536


@dataclass(frozen=True, kw_only=True)
class Deciding:
    """A row's value beside one threshold of a select `stage`: values `sign` the `limit` stay.

    `apart` is the value minus the limit, 0 if the column's type holds them as one number. For a
    top-k select, `rank` is the row's rank among the `ranked` rows that reached it, of which the
    best `kept` stay, and `limit` the least value kept; null if a row stays by its own value alone.
    """

    stage: str
    column: str
    value: float
    sign: str
    limit: float
    apart: float
    rank: int | None = None
    ranked: int | None = None
    kept: int | None = None


def deciding(
    state: RunState, end: str, rows: Mapping[str, StageRow], cause: str | None, uid: bytes
) -> Iterator[Deciding]:
    """Yields all thresholds up to this end for a kept row, whose `cause` is None; for others those
    that the reason is about, of the select that dropped it. Comparisons that decided otherwise are
    left out: parts of an OR, values of an IN."""
    chain = selects_up_to(state, end) if cause is None else iter([state.plan.stages[cause]])
    for planned in chain:
        if not planned.is_select or planned.name not in rows:
            continue
        for threshold in about(planned, rows[planned.name].reason or ""):
            source = planned.bindings[0].get(threshold.column, (planned.name, threshold.column))
            value = rows[source[0]].values.get(source[1]) if source[0] in rows else None
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if not threshold.is_size:
                limit = as_compared(threshold.value, state.plan.schema(*source))
                is_met = not GOES[threshold.sign](value, limit)
                if is_met != rows[planned.name].values[KEEP.name]:  # by another part of its rule
                    continue
                yield Deciding(
                    stage=planned.name,
                    column=threshold.column,
                    value=value,
                    sign=threshold.sign,
                    limit=threshold.value,
                    apart=value - threshold.value if value != limit else 0.0,
                )
            elif source[0] != planned.name:  # a select explains its own ranks itself
                yield from _ranked(state, planned, threshold, source, value, uid)


def about(planned: PlannedStage, reason: str) -> list[Threshold]:
    """Returns the thresholds that a reason quotes, or on a column that it names, or on the stage's
    own columns; all thresholds for no reason."""
    thresholds = list(thresholds_of(planned))
    if not reason or reason.startswith(UNDEFINED):
        return [] if reason else thresholds
    if isinstance(planned.stage, Conditions):  # a row that one drops has no rank
        is_condition = any(reason == condition.text for condition in planned.stage.conjuncts)
        thresholds = [t for t in thresholds if not (is_condition and t.is_size)]
    quoted = [t for t in thresholds if not t.is_size and t.text in reason]
    named = [t for t in thresholds if _names(reason, t.column)]
    if quoted or named:
        return quoted or [t for t in named if t.is_size] or named
    own = {column.name for column in planned.stage.writes}
    return [threshold for threshold in thresholds if threshold.column in own]


def _names(reason: str, column: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(column)}\b", reason) is not None


def _ranked(
    state: RunState,
    planned: PlannedStage,
    threshold: Threshold,
    source: Binding,
    value: float,
    uid: bytes,
) -> Iterator[Deciding]:
    """Yields the row's rank among rows that only the rank decided on; nothing if none is kept."""
    codes = [code for code in planned.stage.reasons if threshold in about(planned, code)]
    root = planned.root
    bound = {name: (planned.name, name) for name in (KEEP.name, REASON.name)} | {"value": source}
    shards = stored(state, root, bound)
    ranked = kept = above = 0
    lowest: float | None = None
    for index in range(len(shards)):
        for batch in shards.batches(index, BATCH_ROWS):
            keep = pc.fill_null(batch[KEEP.name], False)
            lost = pc.is_in(batch[REASON.name].cast(pa.string()), pa.array(codes, pa.string()))
            rows = batch.filter(pc.or_(keep, lost))
            number = rows["value"]
            number = number.cast(pa.float64()) if pa.types.is_floating(number.type) else number
            is_less = pc.less(rows[UID.name].cast(pa.binary()), pa.scalar(uid, pa.binary()))
            own = pa.scalar(value, number.type)  # Python's would be of int64
            is_above = pc.or_(pc.greater(number, own), pc.and_(pc.equal(number, own), is_less))
            ranked += len(rows)
            kept += pc.sum(rows[KEEP.name]).as_py() or 0
            above += pc.sum(is_above).as_py() or 0
            least = pc.min(number.filter(rows[KEEP.name])).as_py()
            lowest = least if lowest is None else min(lowest, lowest if least is None else least)
    if lowest is not None:
        yield Deciding(
            stage=planned.name,
            column=threshold.column,
            value=value,
            sign=">=",
            limit=lowest,
            apart=value - lowest,
            rank=above + 1,
            ranked=ranked,
            kept=kept,
        )


SHORT = 80  # characters of a shown caption


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A select stage's verdict on a row; for a dropped row its first cause, as in the funnel.

    `deciding` are its values beside the thresholds that decided.
    """

    stage: str
    kept: bool
    cause: str | None = None
    reason: str | None = None
    sentence: str
    deciding: tuple[Deciding, ...] = ()


def verdict(
    state: RunState, select: str, rows: Mapping[str, StageRow], place: Place, uid: bytes
) -> Verdict:
    """Returns one select stage's verdict on the row at a place; `rows` are its values by stage."""
    if rows[select].values[KEEP.name]:
        keeper_of = [
            f"keeper of {count(row.keeper_of)} in '{row.stage}'"
            for row in rows.values()
            if row.keeper_of
        ]
        own = _explained(state, select, "", rows)
        explained = [*_clusters(state, select, rows, own), *own, *_told(state, select, "", rows)]
        sentence = "; ".join([f"kept by '{select}'", *explained, *keeper_of])
        thresholds = tuple(deciding(state, select, rows, None, uid))
        return Verdict(stage=select, kept=True, sentence=sentence, deciding=thresholds)
    root = state.plan.stages[select].root
    reasons = {
        name: pa.array([row.reason], pa.string())
        for name, row in rows.items()
        if state.plan.stages[name].root == root
    }
    missing_in = partial(_missing, state, place)
    for stage, code, is_cause in trace(state.plan, select, reasons, pa.array([True]), missing_in):
        if is_cause[0].as_py():
            return Verdict(
                stage=select,
                kept=False,
                cause=stage,
                reason=code,
                sentence=_sentence(state, select, stage, code, rows),
                deciding=tuple(deciding(state, select, rows, stage, uid)),
            )
    return Verdict(stage=select, kept=False, sentence=f"not kept by '{select}'")


def _missing(state: RunState, place: Place, stage: str, columns: set[str]) -> pa.Array | None:
    """Returns whether the stage left out one of the columns at a row, as `ShardReasons.missing`."""
    names = checked_columns(state.plan, stage, columns)
    if names is None:
        return None
    return pa.array([None in state.cell(stage, *place, names).values()])


def _sentence(
    state: RunState, end: str, stage: str, code: str, rows: Mapping[str, StageRow]
) -> str:
    planned = state.plan.stages[stage]
    if code == NOT_SELECTED:
        return f"dropped by '{end}': '{planned.only}' did not select it for '{stage}'"
    if stage != end and not planned.is_select:
        return f"dropped by '{end}', since '{stage}' gave no value: {code}"
    values: list[str] = []
    others: dict[str, None] = {}
    for read, (source, column) in named_in(state.plan, stage, code).items():
        row, writer = rows[source], state.plan.stages[source].stage
        other = _other(writer, row)
        others |= {other: None} if other else {}
        stored = {**row.values, REASON.name: row.reason}  # without images
        in_other = {c.name for c in writer.writes if c.names} if other else set()
        if column in stored.keys() - in_other:
            values.append(f"{read} is {cut(repr(stored[column]))}")
    explained = _explained(state, stage, code, rows)
    if stage != end:  # the end may state further conditions
        explained += _explained(state, end, rows[end].reason or "", rows)
    explained += _told(state, stage, code, rows)
    clusters = [*_clusters(state, stage, rows, explained)]
    if not clusters:  # what stands after clusters is of them
        values, explained = [*values, *explained], []
    by = f"dropped by '{stage}'" if stage == end else f"dropped by '{stage}', before '{end}'"
    parts = [f"{by}: {one_line(code)}", *([", ".join(values)] if values else [])]
    return "; ".join([*parts, *dict.fromkeys([*others, *clusters]), *explained])


def _explained(state: RunState, stage: str, code: str, rows: Mapping[str, StageRow]) -> list[str]:
    """Returns the select's own explanation of its verdict, if it has one."""
    return [*filter(None, [explanation(state.plan.stages[stage], code, rows[stage].values)])]


def _told(state: RunState, stage: str, code: str, rows: Mapping[str, StageRow]) -> Iterator[str]:
    """Yields what a score says of itself: any that a select kept a row by, or that a code names."""
    for read, (source, column) in state.plan.stages[stage].bindings[0].items():
        scorer = state.plan.stages[source].stage
        if source not in rows or rows[source].reason or (code and not _names(code, read)):
            continue
        if isinstance(scorer, Tells) and column == scorer.writes[0].name:
            yield scorer.tells(rows[source].values, kept=not code)


def _clusters(
    state: RunState, stage: str, rows: Mapping[str, StageRow], explained: Sequence[str]
) -> Iterator[str]:
    """Yields the row's clusters that a select reads, except those in its own explanation."""
    for source, column in dict.fromkeys(state.plan.stages[stage].bindings[0].values()):
        writer = state.plan.stages[source].stage
        if source in rows and column in {c.name for c in writer.writes if c.names == "cluster"}:
            pattern = re.compile(rf"\bcluster {rows[source].values[column]}\b")
            if not any(map(pattern.search, explained)):
                yield from filter(None, [_other(writer, rows[source])])


def _other(stage: Stage, row: StageRow) -> str:
    """Describes the row, sample or cluster that a stage names; empty if it names none."""
    if keeper := row.keeper:
        how = "most like it, of the rows before it,"
        if naming(stage, "keeper"):
            how = "near it, and better," if nearness_of(stage) else "equal to it, and better,"
        gone = f", itself dropped by '{keeper.dropped_by[0]}'" if keeper.dropped_by else ""
        place = where(keeper.shard, keeper.position)
        return f"{how} is {keeper.uid[:8]}… ({place}{gone}){caption(keeper)}"
    named = {column.names: row.values[column.name] for column in stage.writes if column.names}
    if named.get("task") and named.get("sample"):
        return f"nearest to it is sample {named['sample']!r} of task {named['task']!r}"
    if named.get("cluster") is not None:
        return f"its cluster in '{row.stage}' is {named['cluster']}"
    return ""


def where(shard: int | None, position: int | None) -> str:
    return "no row of the pool" if shard is None else f"shard {shard}, position {position}"


def count(rows: int | None) -> str:
    return f"{rows:,} {'row' if rows == 1 else 'rows'}"


def caption(keeper: Keeper) -> str:
    text = keeper.text or ""
    short = text if len(text) <= SHORT else f"{text[:SHORT]}…"
    return f": {short!r}" if short else ""
