"""`clipmill report`: a run as one HTML page that needs nothing beside it.

Every figure and picture is read from the run folder, so the same folder gives the same bytes.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import yaml

from pipeline.ledger.balances import balances
from pipeline.ledger.causes import KEPT
from pipeline.ledger.duplicates import duplicates
from pipeline.ledger.funnel import End, funnel
from pipeline.ledger.leaks import leaks
from pipeline.ledger.planted import last_planted
from pipeline.ledger.results import LossCurve, losses, results
from pipeline.ledger.scores import Score
from pipeline.ledger.survey import survey
from pipeline.ledger.work import work
from pipeline.report.balances import balance_section
from pipeline.report.charts import histogram, lines
from pipeline.report.page import render
from pipeline.report.samples import samples_at
from pipeline.report.strips import duplicate_strips, leak_strips
from pipeline.run_folder.ran import newest_recipe
from pipeline.run_folder.state import RunState


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
        concepts=[balance_section(state, of) for of in balances(state)],
        ends=[_end(state, end) for end in rows.ends],
        work=work(state),
    )


def _run(state: RunState) -> dict[str, Any]:
    """What ran: recipe, seed, when it was started, and its stages as YAML."""
    newest, ran = newest_recipe(state.run)
    began = datetime.strptime(newest[:15], "%Y%m%dT%H%M%S")
    return {
        "folder": str(state.run),
        "recipe": state.plan.recipe.name,
        "seed": state.plan.seed,
        "began": began.strftime("%Y-%m-%d %H:%M UTC"),
        "overrides": ran["overrides"],
        "stages": yaml.safe_dump(
            ran["stages"],
            sort_keys=False,
            allow_unicode=True,
            default_flow_style=None,
            width=100,
        ),
    }


def _end(state: RunState, end: End) -> dict[str, Any]:
    """One last select stage: its waterfall, scores, groups, and samples by cause."""
    surveyed = survey(state, end.stage)
    left, falls = end.rows, []
    for cause in end.causes:
        left -= cause.rows
        falls.append({**vars(cause), "left": left})
    shown = [(KEPT, end.kept), *(((loss.stage, loss.reason), loss.rows) for loss in end.causes)]
    places = (row.place for rows in surveyed.samples.values() for row in rows)
    seen = samples_at(state, end.stage, places)
    return {
        "stage": end.stage,
        "rows": end.rows,
        "kept": end.kept,
        "share": end.kept / end.rows if end.rows else 0.0,
        "falls": falls,
        "scores": [_score(score) for score in surveyed.scores],
        "groups": [
            {"by": by, "read_by": surveyed.readers[by], **vars(rates)}
            for by, rates in surveyed.groups.items()
        ],
        "samples": [
            {
                "stage": stage,
                "reason": reason,
                "rows": rows,
                "samples": [
                    {**seen[place], "values": values}
                    for place, values in surveyed.samples.get((stage, reason), ())
                ],
            }
            for (stage, reason), rows in shown
        ],
    }


def _score(score: Score) -> dict[str, Any]:
    return {
        **vars(score),
        "kept": sum(score.kept),
        "dropped": sum(score.dropped),
        "chart": histogram(
            score.edges,
            score.kept,
            score.dropped,
            [vars(cut) for cut in score.cuts],
            score.is_whole,
        ),
    }


def _loss(curve: LossCurve) -> dict[str, Any]:
    """The curve, thinned to what a screen can show; its last steps as one mean."""
    step, loss = curve.step, curve.loss
    every = max(1, len(step) // 400)
    tail = loss[-max(1, len(loss) // 20) :]
    chart = lines([("loss", list(step[::every]), list(loss[::every]))])
    last = sum(tail) / len(tail) if tail else None
    return {"stage": curve.stage, "steps": len(step), "last": last, "chart": chart}
