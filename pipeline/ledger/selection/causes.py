"""Finds each lost row's first cause: through the selects, to the first stage without a value."""

import re
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.passes import NOT_SELECTED
from clipmill.metadata.schema import KEEP
from clipmill.pipeline.ledger.rows.columns import line_of
from clipmill.pipeline.ledger.selection.reasons import ShardReasons
from clipmill.pipeline.planning.plan import Plan
from clipmill.pipeline.planning.planned import Binding, PlannedStage
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.run_folder.words import BEFORE, DROPPED_BY, UNDEFINED

# Maps a stage and columns to the rows that lack one; None: decide by the stage's reasons.
Missing = Callable[[str, set[str]], pa.Array | None]
Cause = tuple[str, str]  # stage and reason
KEPT: Cause = ("", "")  # the cause of kept rows


def causes(reasons: ShardReasons, end: str) -> Iterator[tuple[str, str, pa.Array]]:
    """Yields (stage, reason, mask) for a shard's rows that a select dropped, by first cause."""
    return trace(reasons.state.plan, end, reasons, pc.is_valid(reasons[end]), reasons.missing)


def losses(
    reasons: ShardReasons, end: str, later: list[str]
) -> Iterator[tuple[str, str, pa.Array]]:
    """Yields `causes` of a shard, then those of rows that one of the `later` stages failed."""
    yield from causes(reasons, end)
    yield from failed_later(reasons, end, later)


def trace(
    plan: Plan, end: str, reasons: Mapping[str, pa.Array], rows: pa.Array, missing_in: Missing
) -> Iterator[tuple[str, str, pa.Array]]:
    """Yields (stage, reason, mask): each of `rows` under its first cause.

    A reason is a cause only if its stage left out a value that a later one reads: an ingest stage
    may give `bad_uid` to a row whose link is fine.
    """
    codes = pc.unique(reasons[end].filter(rows)).drop_null().to_pylist()
    for code in sorted(codes):
        of_code = pc.and_(rows, pc.fill_null(pc.equal(reasons[end], code), False))
        if before := _earlier(plan, end, code):
            yield from trace(plan, before, reasons, of_code, missing_in)
            continue
        unexplained = of_code
        undefined = plan.stages[end].bindings[0].get(code.removeprefix(UNDEFINED))
        if code.startswith(UNDEFINED) and undefined:
            line = line_of(plan, undefined[0], attrgetter("sources"))
            taken = {undefined}.union(*(taken_by(plan, name) for name in line))
            for name in (name for name in plan.stages if name in line and name in reasons):
                failed = pc.and_(unexplained, pc.is_valid(reasons[name]))
                columns = {column for stage, column in taken if stage == name}
                guilty = left_out(name, columns, failed, missing_in)
                for inner in sorted(pc.unique(reasons[name].filter(guilty)).to_pylist()):
                    is_inner = pc.fill_null(pc.equal(reasons[name], inner), False)
                    yield name, inner, pc.and_(guilty, is_inner)
                unexplained = pc.and_not(unexplained, guilty)
        if pc.any(unexplained).as_py():
            yield end, code, unexplained


def _earlier(plan: Plan, end: str, code: str) -> str | None:
    """Returns the select stage that dropped the rows to which a later one gives this reason."""
    bound = plan.stages[end].bindings[0]
    named = f"{code.removeprefix(DROPPED_BY)}.{KEEP.name}" if code.startswith(DROPPED_BY) else None
    before = bound[KEEP.name] if code == BEFORE else bound.get(named or "")
    return before[0] if before else None


def is_end(planned: PlannedStage, done: list[PlannedStage]) -> bool:
    """Returns whether a stage is a select that no other select in `done` builds on."""
    kept = (planned.name, KEEP.name)
    return planned.is_select and not any(
        kept in bound.values() for other in done if other.is_select for bound in other.bindings
    )


def later_stages(state: RunState, end: str) -> list[str]:
    """Returns the complete stages after a select that compute its rows and are no selects."""
    after = [end]
    for planned in state.row_stages:
        if not planned.is_select and not {*after}.isdisjoint(planned.needs):
            after.append(planned.name)
    return after[1:]


def failed_later(
    reasons: ShardReasons, end: str, later: list[str]
) -> Iterator[tuple[str, str, pa.Array]]:
    """Yields (stage, reason, mask) for rows of a shard that an end keeps but a later stage failed,
    each at the first stage without a value."""
    kept: pa.Array = None  # read where a stage has a reason
    for name in filter(reasons.__contains__, later):
        for code in sorted(reasons.counts(name).keys() - {"", NOT_SELECTED}):
            kept = pc.is_null(reasons[end]) if kept is None else kept
            rows = pc.and_(kept, pc.fill_null(pc.equal(reasons[name], code), False))
            if pc.any(rows).as_py():
                yield name, code, rows
                kept = pc.and_not(kept, rows)


def through_masks(
    reasons: ShardReasons, found_causes: list[tuple[str, str, pa.Array]]
) -> Iterator[tuple[str, str, pa.Array]]:
    """Yields the causes; for rows outside a stage's mask, those of the select behind it."""
    plan = reasons.state.plan
    for stage, code, rows in found_causes:
        only = plan.stages[stage].only if code == NOT_SELECTED else None
        if only and only in reasons:
            yield from trace(plan, only, reasons, rows, reasons.missing)
        else:
            yield stage, code, rows


def taken_by(plan: Plan, name: str) -> set[Binding]:
    """Returns the columns that a stage reads, each with the stage that writes it."""
    return {source for bound in plan.stages[name].bindings for source in bound.values()}


def left_out(stage: str, columns: set[str], rows: pa.Array, missing_in: Missing) -> pa.Array:
    """Returns the mask of `rows` for which the stage stored no value in one of the columns."""
    if not columns or not pc.any(rows).as_py():
        return pc.and_(rows, False)
    missing = missing_in(stage, columns)
    return rows if missing is None else pc.and_(rows, missing)


def named_in(plan: Plan, stage: str, code: str) -> dict[str, Binding]:
    """Returns the columns that a stage's reason names, as it reads them, and their sources."""
    bindings = plan.stages[stage].bindings
    return {
        read: where
        for read, where in (bindings[0] if bindings else {}).items()
        if re.search(rf"(?<![\w.]){re.escape(read)}\b", code)
    }
