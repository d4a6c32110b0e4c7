"""The first cause of each lost row: back through the selects, then to the first stage that left out
a value which a later one takes."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial, reduce

import pyarrow as pa
import pyarrow.compute as pc

from metadata.schema import IMAGE, IMAGE_BYTES, KEEP
from pipeline.ledger.reasons import ShardReasons
from pipeline.plan import Plan
from pipeline.planned import Binding
from pipeline.state import RunState

UNDEFINED = "undefined:"
BEFORE = "dropped_before"
# Stage and columns to the rows for which it left one of them out; None: take its reasons for it.
Lacks = Callable[[str, set[str]], pa.Array | None]
Cause = tuple[str, str]  # stage and reason


def causes(reasons: ShardReasons, end: str) -> Iterator[tuple[str, str, pa.Array]]:
    """(stage, reason, mask): the rows of a shard that a select stage dropped, by first cause."""
    lacks = partial(lacking, reasons.state, reasons.shard)
    return trace(reasons.state.plan, end, reasons, pc.is_valid(reasons[end]), lacks)


def trace(
    plan: Plan, end: str, reasons: Mapping[str, pa.Array], rows: pa.Array, lacks: Lacks
) -> Iterator[tuple[str, str, pa.Array]]:
    """(stage, reason, mask): the given rows, each under the one cause that came first.

    A reason is a cause only where its stage left out what a later one takes: an ingest stage may
    say `bad_uid` of a row whose link is fine.
    """
    codes = pc.unique(reasons[end].filter(rows)).drop_null().to_pylist()
    for code in sorted(codes):
        here = pc.and_(rows, pc.fill_null(pc.equal(reasons[end], code), False))
        if code == BEFORE:
            before = plan.stages[end].bindings[0][KEEP.name][0]
            yield from trace(plan, before, reasons, here, lacks)
            continue
        left = here
        if code.startswith(UNDEFINED):
            column = code.removeprefix(UNDEFINED)
            binding = plan.stages[end].bindings[0].get(column)
            line = _line(plan, binding[0]) if binding else []
            for name in line:
                if name not in reasons:
                    continue
                taken = {c for other in line for s, c in taken_by(plan, other) if s == name}
                if binding and binding[0] == name:
                    taken.add(binding[1])
                codes_here = reasons[name]
                guilty = left_out(name, taken, pc.and_(left, pc.is_valid(codes_here)), lacks)
                for inner in sorted(pc.unique(codes_here.filter(guilty)).to_pylist()):
                    is_inner = pc.fill_null(pc.equal(codes_here, inner), False)
                    yield name, inner, pc.and_(guilty, is_inner)
                left = pc.and_not(left, guilty)
        if pc.any(left).as_py():
            yield end, code, left


def taken_by(plan: Plan, name: str) -> set[Binding]:
    """The columns that a stage reads, each with the stage that writes it."""
    return {source for bound in plan.stages[name].bindings for source in bound.values()}


def left_out(stage: str, columns: set[str], rows: pa.Array, lacks: Lacks) -> pa.Array:
    """Those of `rows` (a mask) for which the stage stored no value in one of the columns."""
    if not columns or not pc.any(rows).as_py():
        return pc.and_(rows, False)
    missing = lacks(stage, columns)
    return rows if missing is None else pc.and_(rows, missing)


def lacking(state: RunState, shard: int, stage: str, columns: set[str]) -> pa.Array | None:
    """Rows of a shard for which the stage left out one of the columns; None where `askable` is."""
    asked = askable(state.plan, stage, columns)
    if asked is None:
        return None
    shard_state = state.stages[stage].shards[shard]
    tables = list(state.stored[stage].read(shard_state, asked, 65_536))
    missing = [pc.is_null(pa.concat_tables(tables)[name]).combine_chunks() for name in asked]
    return reduce(pc.or_, missing, pa.array([False] * sum(map(len, tables)), pa.bool_()))


def askable(plan: Plan, stage: str, columns: set[str]) -> list[str] | None:
    """The columns that tell what a stage left out; None where they are too large to be read.

    Of an image its size tells. A vector is taken to be missing where the stage has a reason.
    """
    types = {column.name: column.dtype for column in plan.stages[stage].stage.writes}
    proxy = {IMAGE.name: IMAGE_BYTES.name} if IMAGE_BYTES.name in types else {}
    asked = sorted({proxy.get(name, name) for name in columns})
    cheap = all(
        name in types and not pa.types.is_nested(types[name]) and name != IMAGE.name
        for name in asked
    )
    return asked if cheap else None


def _line(plan: Plan, name: str) -> list[str]:
    """The stages that a stage's values come from, first to last, itself included."""
    line: dict[str, None] = {}

    def visit(stage: str) -> None:
        for source in plan.stages[stage].sources:
            visit(source)
        line.setdefault(stage)

    visit(name)
    return [stage for stage in plan.stages if stage in line]
