"""Where the rows of a pool went: at every stage by reason, and each lost row at its first cause.

At every stage: rows = fine + failed + upstream + not selected + dropped, by reason; checked here
and when a stage finishes. A row that ends undefined at a select stage is counted at the earliest
stage that left the value out, so the causes add up to the rows lost.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial, reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from metadata.datacard import SUMMARY
from metadata.outputs import Outputs
from metadata.schema import IMAGE, IMAGE_BYTES, KEEP, REASON, UID
from metadata.shard import NOT_SELECTED
from metadata.uid import halves
from pipeline.errors import RecipeError, StageError
from pipeline.plan import Plan
from pipeline.planned import Binding, PlannedStage
from pipeline.state import RunState
from pipeline.terminal import one_line

UNDEFINED = "undefined:"
BEFORE = "dropped_before"
SORTED_ROWS = 50_000_000
Lacks = Callable[[str, set[str]], pa.Array | None]  # stage and columns to rows: see `lacking`


def funnel(state: RunState) -> dict[str, Any]:
    """Rows by stage and reason, and the waterfall of each last select stage; StageError where a
    stage doesn't add up. A run that only evaluates has none of either."""
    plan = state.plan
    complete = [name for name, stage in state.stages.items() if stage.complete]
    if not complete:
        raise RecipeError("no stage is complete", str(state.run), "run the recipe first")
    done = [name for name in complete if plan.stages[name].stage.gives == "rows"]
    totals: dict[str, Counter[str]] = {name: Counter() for name in done}
    ends = [name for name in done if _is_end(plan, name, done)]
    causes: dict[str, Counter[tuple[str, str]]] = {name: Counter() for name in ends}
    examples: dict[tuple[str, str, str], tuple[int, int]] = {}  # shard and position of one row
    for root in dict.fromkeys(plan.stages[name].root for name in done):
        assert root is not None
        group = [name for name in done if plan.stages[name].root == root]
        for shard in sorted(state.stages[root].shards):
            reasons, lacks = reasons_of(state, group, shard), partial(lacking, state, shard)
            for name in group:
                kinds = _kinds(plan, name, reasons, lacks)
                totals[name].update(kinds)
                if sum(kinds.values()) != state.stages[root].shards[shard].rows:
                    raise StageError(
                        f"{sum(kinds.values())} of {state.stages[root].shards[shard].rows} rows",
                        f"stage '{name}', shard {shard}",
                        "the shard is damaged: delete its record and run again",
                    )
            for name in (end for end in ends if end in group):
                lost = pc.is_valid(reasons[name])
                for stage, code, rows in trace(plan, name, reasons, lost, lacks):
                    causes[name][stage, code] += pc.sum(rows).as_py() or 0
                    place = (shard, pc.index(rows, True).as_py())
                    examples.setdefault((name, stage, code), place)
    return {
        "run": str(state.run),
        "repeated_uids": _repeated_uids(state, done),
        "stages": [_stage_json(state, name, totals[name]) for name in done],
        "ends": [_end_json(state, name, totals[name], causes[name], examples) for name in ends],
        "exports": [
            _export_json(state, planned)
            for planned in map(plan.stages.__getitem__, complete)
            if planned.stage.gives == "data"
        ],
    }


def reasons_of(state: RunState, names: list[str], shard: int) -> dict[str, pa.Array]:
    """The reason column of each stage over one shard, as plain strings."""
    found = {}
    for name in names:
        part = state.parts[name]
        tables = part.read(state.stages[name].shards[shard], [REASON.name], 65_536)
        found[name] = pa.concat_tables(tables)[REASON.name].cast(pa.string()).combine_chunks()
    return found


def lacking(state: RunState, shard: int, stage: str, columns: set[str]) -> pa.Array | None:
    """Rows of a shard for which the stage left out one of the columns; None where unasked."""
    asked = askable(state.plan, stage, columns)
    if asked is None:
        return None
    part = state.parts[stage]
    shard_state = state.stages[stage].shards[shard]
    tables = list(part.read(shard_state, asked, 65_536))
    missing = [pc.is_null(pa.concat_tables(tables)[name]).combine_chunks() for name in asked]
    return reduce(pc.or_, missing, pa.array([False] * sum(map(len, tables)), pa.bool_()))


def askable(plan: Plan, stage: str, columns: set[str]) -> list[str] | None:
    """The columns to read for what a stage left out; None where reading costs as the work did.

    An image is told by its size. Of vectors, a reason is taken to mean that there is none.
    """
    types = {column.name: column.dtype for column in plan.stages[stage].stage.writes}
    proxy = {IMAGE.name: IMAGE_BYTES.name} if IMAGE_BYTES.name in types else {}
    asked = sorted({proxy.get(name, name) for name in columns})
    cheap = all(
        name in types and not pa.types.is_nested(types[name]) and name != IMAGE.name
        for name in asked
    )
    return asked if cheap else None


def trace(
    plan: Plan, end: str, reasons: dict[str, pa.Array], rows: pa.Array, lacks: Lacks
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
                taken = {c for other in line for s, c in _taken(plan, other) if s == name}
                if binding and binding[0] == name:
                    taken.add(binding[1])
                causes = reasons[name]
                guilty = _left_out(name, taken, pc.and_(left, pc.is_valid(causes)), lacks)
                for inner in sorted(pc.unique(causes.filter(guilty)).to_pylist()):
                    yield name, inner, pc.and_(guilty, pc.fill_null(pc.equal(causes, inner), False))
                left = pc.and_not(left, guilty)
        if pc.any(left).as_py():
            yield end, code, left


def _taken(plan: Plan, name: str) -> set[Binding]:
    """What a stage takes from others: stage and column."""
    return {source for bound in plan.stages[name].bindings for source in bound.values()}


def _left_out(stage: str, columns: set[str], rows: pa.Array, lacks: Lacks) -> pa.Array:
    """Those of the rows for which the stage left out one of the columns."""
    if not columns or not pc.any(rows).as_py():
        return pc.and_(rows, False)
    missing = lacks(stage, columns)
    return rows if missing is None else pc.and_(rows, missing)


def _line(plan: Plan, name: str) -> list[str]:
    """The stages that a stage's values come from, first to last, itself included."""
    found: dict[str, None] = {}

    def visit(stage: str) -> None:
        for source in plan.stages[stage].sources:
            visit(source)
        found.setdefault(stage)

    visit(name)
    return [stage for stage in plan.stages if stage in found]


def _kinds(plan: Plan, name: str, reasons: dict[str, pa.Array], lacks: Lacks) -> Counter[str]:
    """Rows of a stage by `kind` or `kind: reason`."""
    planned = plan.stages[name]
    own = reasons[name]
    upstream = pa.array([False] * len(own), pa.bool_())
    for source in planned.sources:
        if source in reasons:
            taken = {column for stage, column in _taken(plan, name) if stage == source}
            rows = pc.and_(pc.is_valid(own), pc.is_valid(reasons[source]))
            upstream = pc.or_(upstream, _left_out(source, taken, rows, lacks))
    select = KEEP.name in {column.name for column in planned.stage.writes}
    found: Counter[str] = Counter()
    found["fine"] = own.null_count
    for code in sorted(pc.unique(own).drop_null().to_pylist()):
        rows = pc.equal(own, code)
        count = pc.sum(rows).as_py() or 0
        if code == NOT_SELECTED:
            found[NOT_SELECTED] += count
            continue
        if select:
            found[f"dropped: {code}"] += count
            continue
        late = pc.sum(pc.and_(pc.fill_null(rows, False), upstream)).as_py() or 0
        found[f"upstream: {code}"] += late
        found[f"failed: {code}"] += count - late
    return +found


def _repeated_uids(state: RunState, names: list[str]) -> int | None:
    """Rows whose uid an earlier row has; None for pools too large to sort in memory."""
    roots = [state.stages[name] for name in names if state.plan.stages[name].is_root]
    if sum(shard.rows for root in roots for shard in root.shards.values()) > SORTED_ROWS:
        return None
    repeated = 0
    for root in roots:
        tables = [
            table
            for shard in root.shards.values()
            for table in state.parts[root.planned.name].read(shard, [UID.name], 65_536)
        ]
        if tables:
            uids = halves(pa.concat_tables(tables)[UID.name]).view("u8,u8").ravel()
            repeated += len(uids) - len(np.unique(uids))
    return repeated


def _is_end(plan: Plan, name: str, done: list[str]) -> bool:
    """A select stage that no later select stage builds on, of those that are done."""
    if KEEP.name not in {column.name for column in plan.stages[name].stage.writes}:
        return False
    return not any(
        (name, KEEP.name) in bound.values() and KEEP.name in {c.name for c in other.stage.writes}
        for other in map(plan.stages.__getitem__, done)
        for bound in other.bindings
    )


def _stage_json(state: RunState, name: str, counts: Counter[str]) -> dict[str, Any]:
    uses = state.plan.stages[name].uses
    reasons: dict[str, dict[str, int]] = {"failed": {}, "upstream": {}, "dropped": {}}
    for key, count in counts.items():
        kind, _, code = key.partition(": ")
        if code:
            reasons[kind][code] = count
    folder = state.stages[name].folder
    is_list = uses == "select.uid_list"
    listed = folder.read_json("out/list.json", dict[str, Any]) if is_list else None
    return {
        "stage": name,
        "uses": uses,
        "rows": sum(counts.values()),
        "fine": counts["fine"],
        "not_selected": counts[NOT_SELECTED],
        "listed": listed,
        **reasons,
    }


def _end_json(
    state: RunState,
    name: str,
    counts: Counter[str],
    causes: Counter[tuple[str, str]],
    examples: dict[tuple[str, str, str], tuple[int, int]],
) -> dict[str, Any]:
    """The waterfall of an end, each cause with the uid of one of its rows."""
    order = list(state.plan.stages)
    root = state.plan.stages[name].root
    assert root is not None
    lost = sum(causes.values())
    rows = sum(counts.values())
    if counts["fine"] + lost != rows:
        raise StageError(
            f"{counts['fine']} kept and {lost} lost make no {rows}",
            f"stage '{name}'",
            "this is a fault of ours: report it with the recipe",
        )
    ranked = sorted(causes.items(), key=lambda found: (order.index(found[0][0]), -found[1]))
    return {
        "stage": name,
        "rows": rows,
        "kept": counts["fine"],
        "causes": [
            {
                "stage": stage,
                "reason": reason,
                "rows": count,
                "example": state.uid(root, *examples[name, stage, reason]),
            }
            for (stage, reason), count in ranked
        ],
    }


def _export_json(state: RunState, planned: PlannedStage) -> dict[str, Any]:
    stage = state.stages[planned.name]
    outputs = Outputs(stage.folder)
    summary = json.loads(outputs.read(SUMMARY)) if SUMMARY in outputs.names else {}
    counts = dict(summary.get("counts", {}))
    rows, exported = counts.pop("rows", None), counts.pop("exported", None)
    if rows is not None and rows != exported + sum(counts.values()):
        raise StageError(
            f"{exported} of {rows} rows exported, {counts}",
            f"stage '{planned.name}'",
            "the export is damaged: delete its folder and run again",
        )
    return {
        "stage": planned.name,
        "rows": rows,
        "exported": exported,
        "left": {reason: count for reason, count in counts.items() if count},
        "folder": f"{state.stages[planned.name].folder}/out",
        "files": len(stage.outputs),
        "bytes": sum(size for _, size in stage.outputs),
    }


def text(found: dict[str, Any]) -> str:
    """The funnel as a page: stages with their reasons, then each end's waterfall."""
    lines = [found["run"], ""]
    if not found["stages"]:
        lines.append("none of its complete stages has rows")
    width = max((len(stage["stage"]) for stage in found["stages"]), default=0)
    for stage in found["stages"]:
        lines.append(
            f"{stage['stage']:<{width}}  {stage['uses']:<22} {stage['rows']:>10,} rows"
            f" {stage['fine']:>10,} fine"
        )
        for kind in ("failed", "upstream", "dropped"):
            for code, count in sorted(stage[kind].items(), key=lambda item: -item[1]):
                lines.append(f"{'':<{width}}    {kind:<10} {count:>10,}  {one_line(code)}")
        if stage["not_selected"]:
            lines.append(f"{'':<{width}}    {'not selected':<10} {stage['not_selected']:>8,}")
        if stage["listed"] and stage["listed"]["missing"]:
            lines.append(
                f"{'':<{width}}    {'no row for':<10} {stage['listed']['missing']:>10,}"
                f"  of {stage['listed']['uids']:,} listed uids"
            )
    if found["repeated_uids"]:
        lines += ["", f"{found['repeated_uids']:>10,}  rows have the uid of an earlier row"]
    for end in found["ends"]:
        lines += ["", f"{end['rows']:>10,}  rows in the pool"]
        left = end["rows"]
        for cause in end["causes"]:
            left -= cause["rows"]
            lines.append(
                f"{-cause['rows']:>10,}  {cause['stage']}: {one_line(cause['reason'])}"
                f"  ({left:,} left; why {cause['example'][:8]})"
            )
        share = end["kept"] / end["rows"] if end["rows"] else 0.0
        lines.append(f"{end['kept']:>10,}  kept by '{end['stage']}' ({share:.1%})")
    for export in found["exports"]:
        lines += [
            "",
            f"{export['stage']}: {export['files']} files,"
            f" {export['bytes'] / 1e6:,.1f} MB in {export['folder']}",
        ]
        if export["rows"] is not None:
            left = "".join(f", {count:,} {why}" for why, count in export["left"].items())
            lines.append(f"    {export['exported']:,} of {export['rows']:,} rows{left}")
    return "\n".join(lines)
