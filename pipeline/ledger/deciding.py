"""What decided of one row: its values beside the thresholds of a select, how far they are, and its
rank where the select keeps the best."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import KEEP, REASON, UID
from clipmill.pipeline.ledger.at_row import StageRow
from clipmill.pipeline.ledger.stored import selects_up_to, stored
from clipmill.pipeline.planning.planned import Binding, PlannedStage
from clipmill.pipeline.planning.selects import thresholds_of
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.run_folder.words import UNDEFINED
from clipmill.pipeline.stage import Threshold

BATCH_ROWS = 65_536


@dataclass(frozen=True, kw_only=True)
class Deciding:
    """A value of a row beside one threshold of a select `stage`: a value stays that is `sign` the
    `limit`, and this one is `apart` above it, or below where that is negative.

    `rank` is its place among the `ranked` rows that got as far, of which the best `kept` stay, and
    `limit` then the least value of those; null where a row stays by its own value alone.
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
    """Of a kept row, where `cause` is None, all thresholds up to this end; of another those of the
    select that dropped it which its reason is about."""
    chain = selects_up_to(state, end) if cause is None else iter([state.plan.stages[cause]])
    for planned in chain:
        if not planned.is_select or planned.name not in rows:
            continue
        for at in about(planned, rows[planned.name].reason or ""):
            where = planned.bindings[0].get(at.column, (planned.name, at.column))
            value = rows[where[0]].values.get(where[1]) if where[0] in rows else None
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if not at.is_size:
                yield Deciding(
                    stage=planned.name,
                    column=at.column,
                    value=value,
                    sign=at.sign,
                    limit=at.value,
                    apart=value - at.value,
                )
            elif where[0] != planned.name:  # its own ranks it tells in its own words
                yield from _ranked(state, planned, at, where, value, uid)


def about(planned: PlannedStage, reason: str) -> list[Threshold]:
    """The thresholds that a reason is about: all without one; else those in its words, or those on
    a column that it names, or those on the stage's own columns."""
    every = [at for at in thresholds_of(planned) if at.item is None]
    if not reason or reason.startswith(UNDEFINED):
        return [] if reason else every
    said = [at for at in every if not at.is_size and at.text in reason]
    named = [at for at in every if _names(reason, at.column)]
    if said or named:
        return said or [at for at in named if at.is_size] or named
    own = {column.name for column in planned.stage.writes}
    return [at for at in every if at.column in own]


def _names(reason: str, column: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(column)}\b", reason) is not None


def _ranked(
    state: RunState, planned: PlannedStage, at: Threshold, where: Binding, value: float, uid: bytes
) -> Iterator[Deciding]:
    """The rank among the rows that only the rank decided of; nothing where none of them stays."""
    others = [it.text for it in thresholds_of(planned) if not it.is_size]
    codes = [
        code
        for code in planned.stage.reasons
        if _names(code, at.column)
        and not code.startswith(UNDEFINED)
        and not any(text in code for text in others)
    ]
    root = planned.root
    bound = {name: (planned.name, name) for name in (KEEP.name, REASON.name)} | {"value": where}
    shards = stored(state, root, bound)
    ranked = kept = above = 0
    lowest: float | None = None
    for index in range(len(shards)):
        for batch in shards.batches(index, BATCH_ROWS):
            keep = pc.fill_null(batch[KEEP.name], False)
            lost = pc.is_in(batch[REASON.name].cast(pa.string()), pa.array(codes, pa.string()))
            rows = batch.filter(pc.or_(keep, lost))
            number = rows["value"].cast(pa.float64())
            is_less = pc.less(rows[UID.name].cast(pa.binary()), pa.scalar(uid, pa.binary()))
            is_above = pc.or_(pc.greater(number, value), pc.and_(pc.equal(number, value), is_less))
            ranked += len(rows)
            kept += pc.sum(rows[KEEP.name]).as_py() or 0
            above += pc.sum(is_above).as_py() or 0
            least = pc.min(number.filter(rows[KEEP.name])).as_py()
            lowest = least if lowest is None else min(lowest, lowest if least is None else least)
    if lowest is not None:
        yield Deciding(
            stage=planned.name,
            column=at.column,
            value=value,
            sign=">=",
            limit=lowest,
            apart=value - lowest,
            rank=above + 1,
            ranked=ranked,
            kept=kept,
        )
