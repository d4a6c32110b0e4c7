"""`clipmill report`: a run as one HTML page that needs nothing beside it.

Every figure and picture is read from the run folder, so the same folder gives the same bytes.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import yaml

from pipeline.ledger.causes import Cause
from pipeline.ledger.duplicates import duplicates
from pipeline.ledger.funnel import End, funnel
from pipeline.ledger.groups import keep_rates
from pipeline.ledger.leaks import leaks
from pipeline.ledger.planted import last_planted
from pipeline.ledger.results import LossCurve, losses, results
from pipeline.ledger.stored import Place, selects_up_to
from pipeline.ledger.survey import KEPT, Scores, survey
from pipeline.report.charts import histogram, lines
from pipeline.report.concepts import concepts
from pipeline.report.page import render
from pipeline.report.samples import samples_at
from pipeline.report.strips import duplicate_strips, leak_strips
from pipeline.state import RunState, StageState, newest_recipe, summary


def report(state: RunState, baselines: Sequence[str] = ()) -> str:
    """The page, as HTML."""
    rows = funnel(state)
    return render(
        "report.html",
        title=state.plan.recipe.name,
        run=_run(state),
        funnel=rows,
        results=results(state, baselines),
        truth=last_planted(state),
        losses=[_loss(curve) for curve in losses(state)],
        duplicates=[
            {**vars(of), "strips": duplicate_strips(state, of)} for of in duplicates(state)
        ],
        leaks=[{**vars(of), "strips": leak_strips(state, of)} for of in leaks(state)],
        concepts=concepts(state),
        ends=[_end(state, end) for end in rows.ends],
        work=[work(name, stage) for name, stage in state.stages.items()],
    )


def _run(state: RunState) -> dict[str, Any]:
    """What ran: recipe, seed, when it was started, and its stages as YAML."""
    newest, held = newest_recipe(state.run)
    began = datetime.strptime(newest[:15], "%Y%m%dT%H%M%S")
    return {
        "folder": str(state.run),
        "recipe": state.plan.recipe.name,
        "seed": state.plan.seed,
        "began": began.strftime("%Y-%m-%d %H:%M UTC"),
        "overrides": held["overrides"],
        "stages": yaml.safe_dump(
            held["stages"], sort_keys=False, allow_unicode=True, default_flow_style=None, width=100
        ),
    }


def _end(state: RunState, end: End) -> dict[str, Any]:
    """One last select stage: its waterfall, scores, groups, and samples by cause."""
    found = survey(state, end.stage)
    samples = _samples(state, end.stage, found["samples"])
    left, falls = end.rows, []
    for cause in end.causes:
        left -= cause.rows
        falls.append(
            {"stage": cause.stage, "reason": cause.reason, "rows": cause.rows, "left": left}
        )
    causes = [
        {**vars(cause), "samples": samples.get((cause.stage, cause.reason), [])}
        for cause in end.causes
    ]
    columns = {
        column
        for planned in selects_up_to(state, end.stage)
        for _, column in planned.bindings[0].values()
    }
    return {
        "stage": end.stage,
        "rows": end.rows,
        "kept": end.kept,
        "share": end.kept / end.rows if end.rows else 0.0,
        "falls": falls,
        "scores": [_score(score) for score in found["scores"]],
        "groups": [
            {"by": name, "is_asked_for": name in columns, **vars(keep_rates(tally))}
            for name, tally in found["groups"].items()
        ],
        "samples": [{"reason": "", "rows": end.kept, "samples": samples.get(KEPT, [])}, *causes],
    }


def _samples(
    state: RunState, end: str, chosen: dict[Cause, list[tuple[Place, dict[str, Any]]]]
) -> dict[Cause, list[dict[str, Any]]]:
    """Picture, caption and deciding values of each chosen row, by cause."""
    seen = samples_at(state, end, (place for few in chosen.values() for place, _ in few))
    return {
        cause: [{**seen[place], "values": values} for place, values in few]
        for cause, few in chosen.items()
    }


def _score(score: Scores) -> dict[str, Any]:
    kept, dropped = score.kept.tolist(), score.dropped.tolist()
    return {
        "name": score.name,
        "stage": score.where[0],
        "cuts": score.cuts,
        "undefined": score.undefined,
        "kept": sum(kept),
        "dropped": sum(dropped),
        "chart": histogram(score.edges.tolist(), kept, dropped, score.cuts, score.is_whole),
    }


def _loss(curve: LossCurve) -> dict[str, Any]:
    """The curve, thinned to what a screen can show; its last steps as one mean."""
    step, loss = curve.step, curve.loss
    every = max(1, len(step) // 400)
    tail = loss[-max(1, len(loss) // 20) :]
    chart = lines([("loss", list(step[::every]), list(loss[::every]))])
    last = sum(tail) / len(tail) if tail else None
    return {"stage": curve.stage, "steps": len(step), "last": last, "chart": chart}


def work(name: str, stage: StageState) -> dict[str, Any]:
    """A stage's rows, seconds of work, bytes and faults, from its records."""
    records = stage.records
    seconds = stage.seconds
    rows = sum(record.computed for record in records)
    outputs = sum(size for _, size in stage.outputs)
    return {
        "stage": name,
        "uses": stage.planned.uses,
        "done": summary(stage),
        "shards": len(stage.shards),
        "rows": rows,
        "seconds": seconds,
        "rows_per_s": rows / seconds if seconds and rows else None,
        "bytes": sum(record.size_bytes for record in records) + outputs,
        "retries": sum(record.attempts - 1 for record in records),
        "failures": [
            {"shard": failure.shard, "found": failure.found, "do": failure.do}
            for failure in stage.failures.values()
            if failure is not None
        ],
    }
