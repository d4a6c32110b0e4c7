"""Plans, outcomes and states in words and as JSON."""

import dataclasses
from typing import TYPE_CHECKING, Any

from metadata.fingerprint import plain
from metadata.record import Failure
from metadata.schema import UID
from pipeline.plan import Plan
from pipeline.planned import PlannedStage
from pipeline.stage import DatasetStage, settings_fields
from pipeline.state import RunState, StageState, summary
from pipeline.terminal import one_line

if TYPE_CHECKING:
    from pipeline.run import Outcome  # and with it all that runs

SIZES = (10**6, 10**8, 10**10)  # rows of a pool, where what grows with their square is asked for


def plan_json(plan: Plan, state: RunState | None) -> dict[str, Any]:
    """Every stage: settings, bindings, resources, and what of it is done."""
    return {
        "recipe": plan.recipe.path,
        "seed": plan.seed,
        "stages": [_stage_json(plan, planned, state) for planned in plan.stages.values()],
    }


def plan_text(plan: Plan, state: RunState | None) -> str:
    """The same as a page: one paragraph a stage."""
    lines = [f"{plan.recipe.path}, seed {plan.seed}: {len(plan.stages)} stages", ""]
    for planned in plan.stages.values():
        made = _stage_json(plan, planned, state)
        done = f"  [{made['done']}]" if "done" in made else ""
        lines.append(f"{planned.name}: {planned.uses} v{planned.stage.version}{done}")
        for edge in ("from", "data", "model", "only"):
            if made.get(edge):
                value = made[edge]
                lines.append(
                    f"  {edge:<9} {', '.join(value) if isinstance(value, list) else value}"
                )
        default = {f.name: plain(f.default) for f in settings_fields(planned.stage)}
        settings = ", ".join(
            f"{key}={one_line(value)}"
            for key, value in made["settings"].items()
            if value != default[key]
        )
        if settings:
            lines.append(f"  settings  {settings}")
        if made["reads"]:
            lines.append(f"  reads     {', '.join(made['reads'])}")
        if made["writes"]:
            lines.append(f"  writes    {', '.join(made['writes'])}")
        if "candidates" in made:
            expected = [f"{n:.1e} of {int(k):,} rows" for k, n in made["candidates"].items()]
            lines.append(f"  compares  pairs: {', '.join(expected)}")
        if "note" in made:
            lines.append(f"  note      {made['note']}")
        needs = made["resources"]
        gpus = f", {needs['gpus']} GPUs" if needs["gpus"] else ""
        lines.append(
            f"  needs     {needs['cpus']} CPU{gpus}, {needs['memory_gb']} GB a worker;"
            f" {planned.stage.determinism}; folder {planned.folder}"
        )
        lines.append("")
    return "\n".join(lines).rstrip()


def _stage_json(plan: Plan, planned: PlannedStage, state: RunState | None) -> dict[str, Any]:
    stage = planned.stage
    made: dict[str, Any] = {
        "name": planned.name,
        "uses": planned.uses,
        "version": stage.version,
        "determinism": stage.determinism,
        "from": list(planned.parents),
        "data": planned.data,
        "model": planned.model,
        "only": planned.only,
        "settings": {
            field.name: plain(getattr(stage, field.name)) for field in settings_fields(stage)
        },
        "reads": [
            f"{read} = {source}.{column}" if read != column else f"{source}.{column}"
            for bound in planned.bindings
            for read, (source, column) in bound.items()
        ],
        "writes": [column.name for column in stage.writes if column is not UID],
        "resources": dataclasses.asdict(stage.resources),
        "folder": planned.folder,
    }
    if isinstance(stage, DatasetStage):
        expected = {rows: stage.candidates(rows) for rows in _sizes(planned, state)}
        if None not in expected.values():
            made["candidates"] = {str(rows): pairs for rows, pairs in expected.items()}
    note = _note(plan, planned)
    if note:
        made["note"] = note
    if state is not None:
        made["done"] = summary(state.stages[planned.name])
    return made


def notes(plan: Plan) -> list[str]:
    """What a user should know of a plan that can be run."""
    found = {name: _note(plan, planned) for name, planned in plan.stages.items()}
    return [f"'{name}': {note}" for name, note in found.items() if note]


def _note(plan: Plan, planned: PlannedStage) -> str:
    """Of a select: the stages it reads that name keepers, where they keep by several orders."""
    if planned.uses != "select.where":
        return ""
    order: dict[str, Any] = {}
    for name in sorted({source for source, _ in planned.bindings[0].values()}):
        stage: Any = plan.stages[name].stage
        if hasattr(stage, "keep"):
            keeps = stage.keep if isinstance(stage.keep, tuple) else filter(None, (stage.keep,))
            bound = plan.stages[name].bindings[0]
            order[name] = tuple((bound[keep.column], keep.order) for keep in keeps)
    if len(set(order.values())) < 2:
        return ""
    return (
        f"{', '.join(order)} keep by several orders: of two copies each may go for the other."
        " Give them one `keep`"
    )


def _sizes(planned: PlannedStage, state: RunState | None) -> tuple[int, ...]:
    """The rows of the stage's pool; sizes to choose by while these are unknown."""
    root = state.stages[planned.root] if state and planned.root else None
    if root and root.complete:
        return (sum(shard.rows for shard in root.shards.values()),)
    return SIZES


def status_json(state: RunState) -> dict[str, Any]:
    """Every stage: shards and rows done, seconds, rows by reason, failures."""
    return {
        "run": str(state.run),
        "recipe": state.plan.recipe.path,
        "stages": [_status_of(name, stage) for name, stage in state.stages.items()],
    }


def _status_of(name: str, stage: StageState) -> dict[str, Any]:
    return {
        "name": name,
        "uses": stage.planned.uses,
        "complete": stage.complete,
        "shards": len(stage.shards),
        "total": stage.total,
        "rows": sum(shard.rows for shard in stage.shards.values()),
        "seconds": round(stage.seconds, 1),
        "reasons": {code: n for code, n in sorted(stage.counts.items()) if code},
        "failures": [_failure_json(f) for f in stage.failures.values() if f is not None],
    }


def _failure_json(failure: Failure) -> dict[str, Any]:
    return {
        "shard": failure.shard,
        "crashed": failure.crashed,
        "found": failure.found,
        "where": failure.where,
        "do": failure.do,
    }


def status_text(state: RunState) -> str:
    """The same as a table, failures below."""
    lines = [f"{state.run}: {state.plan.recipe.path}", ""]
    width = max(map(len, state.stages))
    for name, stage in state.stages.items():
        made = _status_of(name, stage)
        if stage.planned.stage.gives == "rows":
            missing = sum(made["reasons"].values())
            held = f"{made['rows']:>10,} rows  {missing:>9,} without a value"
        else:
            held = f"{len(stage.outputs):>10,} files{'':>26}"
        lines.append(f"{name:<{width}}  {summary(stage):<24} {held}  {made['seconds']:>8,.1f} s")
    lines += _failures(state)
    return "\n".join(lines)


def _failures(state: RunState) -> list[str]:
    lines = []
    for name, stage in state.stages.items():
        for failure in stage.failures.values():
            if failure is not None:
                lines += [
                    "",
                    f"{name}, shard {failure.shard}: {failure.found}",
                    f"  where: {failure.where}",
                    f"  do:    {failure.do}",
                ]
    return lines


def outcome_json(outcome: "Outcome") -> dict[str, Any]:
    """How the run ended: the status, and why what is not complete is not."""
    return {
        **status_json(outcome.state),
        "complete": outcome.complete,
        "stopped": {
            name: dict(zip(("found", "where", "do"), error.args, strict=True)) if error else None
            for name, error in outcome.stopped.items()
        },
    }


def outcome_text(outcome: "Outcome") -> str:
    """How the run ended, in a few lines."""
    state = outcome.state
    lines = []
    for name, error in outcome.stopped.items():
        if error is not None:
            lines += [f"{name}: {error}", ""]
    waiting = [name for name, error in outcome.stopped.items() if error is None]
    if waiting:
        lines.append(f"not complete: {', '.join(waiting)}")
    lines += _failures(state)
    if outcome.complete:
        lines.append(f"done: {len(state.stages)} stages in {state.run}")
        for name, stage in state.stages.items():
            if stage.planned.stage.gives == "data":
                lines.append(f"  {name}: {stage.folder}/out")
        lines.append(f"next: clipmill funnel --run {state.run}")
    else:
        lines += ["", "finished shards are kept: mend the cause and run the same command again"]
    return "\n".join(lines)
