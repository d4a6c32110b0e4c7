"""A plan as text and as JSON, and what a user should know before it runs."""

import dataclasses
from typing import Any

from metadata.fingerprint import plain
from metadata.schema import UID
from pipeline.planning.plan import Plan
from pipeline.planning.planned import PlannedStage
from pipeline.run_folder.state import RunState, summary
from pipeline.stage import DatasetStage, settings_fields
from pipeline.terminal import one_line

SIZES = (10**6, 10**8, 10**10)  # rows of a pool, where what grows with their square is asked for


def as_json(plan: Plan, state: RunState | None) -> dict[str, Any]:
    """Every stage: settings, bindings, resources, and what of it is done."""
    return {
        "recipe": plan.recipe.path,
        "seed": plan.seed,
        "stages": [_stage_json(plan, planned, state) for planned in plan.stages.values()],
    }


def text(plan: Plan, state: RunState | None) -> str:
    """One paragraph a stage."""
    lines = [f"{plan.recipe.path}, seed {plan.seed}: {len(plan.stages)} stages", ""]
    for planned in plan.stages.values():
        made = _stage_json(plan, planned, state)
        done = f"  [{made['done']}]" if "done" in made else ""
        lines.append(f"{planned.name}: {planned.uses} v{planned.stage.version}{done}")
        for edge in ("from", "data", "rows", "model", "only"):
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
        "rows": planned.kept_by,
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
    by_stage = {name: _note(plan, planned) for name, planned in plan.stages.items()}
    return [f"'{name}': {note}" for name, note in by_stage.items() if note]


def _note(plan: Plan, planned: PlannedStage) -> str:
    """The stages that name keepers by different orders, of those that one select reads."""
    if not planned.is_select:
        return ""
    order: dict[str, Any] = {}
    for name in sorted({source for source, _ in planned.bindings[0].values()}):
        stage, bindings = plan.stages[name].stage, plan.stages[name].bindings
        if any(column.names in ("keeper", "neighbour") for column in stage.writes):
            order[name] = tuple((bindings[0][column], way) for column, way in stage.prefers)
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
