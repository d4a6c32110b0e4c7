"""`clipmill plan --probe`: asks models for some rows, and predicts the cost of the others."""

import argparse
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Any

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine import probe
from clipmill.pipeline.engine.prediction import Predicted
from clipmill.pipeline.engine.probe import Probed
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.planning.plan import Plan
from clipmill.pipeline.run_folder.origin import refuse_another_pool
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.run_folder.words import duration
from clipmill.pipeline.verbs import DONE
from clipmill.pipeline.verbs._options import run_command
from clipmill.pipeline.verbs._signals import stopped_by_signals

LINES = {
    "requests": "requests",
    "prompt_tokens": "tokens of prompts",
    "completion_tokens": "tokens of answers",
    "usd": "dollars",
    "hours": "time",
}


def run(plan: Plan, options: argparse.Namespace) -> int:
    """Probes each stage that has rows, prints a table of each; RecipeError if one lacks rows."""
    _check(options)
    asking = probe.asking(plan)
    if not asking:
        print(json.dumps({"stages": {}}) if options.json else "no stage of it asks a model")
        return DONE
    folder = Storage(options.out)
    refuse_another_pool(plan, folder)
    state = RunState(plan, folder)
    lacking = {stage.name: lacks for stage in asking if (lacks := probe.missing(state, stage))}
    ready = [stage for stage in asking if stage.name not in lacking]
    results: dict[str, Probed] = {}
    if ready:
        with closing(LocalExecutor()) as here, stopped_by_signals():
            names = [stage.name for stage in ready]
            workers = {
                stage.name: options.workers or here.places(stage.stage.resources) for stage in ready
            }
            for name, probed in probe.probe(plan, folder, here, names, options.probe, workers):
                results[name] = probed
                if not options.json:
                    print(page(name, probed), flush=True)
    if options.json:
        stages = {name: as_json(probed) for name, probed in results.items()}
        print(json.dumps({"stages": stages}, indent=1))
    if lacking:
        name, lacks = next(iter(lacking.items()))
        are = "is" if len(lacks) == 1 else "are"
        found = f"no rows to probe '{name}' with: {', '.join(lacks)} {are} not complete"
        do = "; ".join(run_command(options, need) for need in _last(plan, lacks))
        raise RecipeError(found, plan.stages[name].where, do)
    return DONE


def _check(options: argparse.Namespace) -> None:
    if options.probe is None:
        raise RecipeError("--workers without --probe", "the arguments", "add --probe 200")
    if options.probe < 1:
        raise RecipeError(f"--probe {options.probe}", "the arguments", "give 1 or more rows")
    if options.workers is not None and options.workers < 1:
        raise RecipeError(f"--workers {options.workers}", "the arguments", "give 1 or more")
    if not options.out:
        do = "name the run folder: its rows are asked for, and the answers stay there"
        raise RecipeError("--probe without --out", "the arguments", do)


def _last(plan: Plan, names: Sequence[str]) -> list[str]:
    """Returns the stages that none of the others needs."""
    before: set[str] = set()
    for planned in reversed(plan.stages.values()):
        if planned.name in names or planned.name in before:
            before |= set(planned.needs)
    return [name for name in names if name not in before]


def as_json(probed: Probed) -> dict[str, Any]:
    """Returns what was asked, and the predicted cost of the rows that are left."""
    return {
        "rows": probed.rows,
        "left": probed.left,
        "shards": probed.shards,
        "asked": probed.asked,
        "stored": probed.stored,
        "reasons": dict(probed.reasons),
        "seconds": round(probed.seconds, 3),
        "spent": probed.spent,
        "workers": probed.workers,
        "at_once": probed.at_once,
        "is_steady": probed.pace.is_steady if probed.pace else None,
        "predicted": {name: asdict(value) for name, value in probed.predicted.items()},
    }


def page(name: str, probed: Probed) -> str:
    """Returns a line on what was asked, the table, and notes."""
    if not probed.rows:
        return f"{name}: no rows are left to ask for"
    sent = f"{probed.asked:,} request{'s' * (probed.asked != 1)}"
    lines = [
        f"{name}: {probed.rows:,} of {probed.rows + probed.left:,} rows probed,"
        f" {sent} in {duration(probed.seconds)}"
    ]
    if probed.left:
        lines.append(f"  {'':<18}{'a row':>10}{'the rest':>14}   in 9 of 10 cases")
        for key, what in LINES.items():
            if key in probed.predicted:
                lines.append(_line(what, probed.predicted[key], probed.left))
    return "\n".join([*lines, *(f"  {note}" for note in _notes(probed))])


def _line(what: str, predicted: Predicted, left: int) -> str:
    is_time = what == LINES["hours"]

    def written(value: float) -> str:
        return duration(value * 3600) if is_time else _number(value)

    each = "" if is_time else _number(predicted.value / left)
    between = "one row tells none"
    if predicted.low is not None and predicted.high is not None:
        between = f"{written(predicted.low)} to {written(predicted.high)}"
    return f"  {what:<18}{each:>10}{written(predicted.value):>14}   {between}"


def _number(value: float) -> str:
    """Formats with three significant digits; numbers from 100 on as whole: 1,234,567."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _notes(probed: Probed) -> list[str]:
    notes = []
    if probed.stored:
        notes.append(
            f"{probed.stored:,} answers lay there already and were not paid again; the rest is"
            " counted as if none did"
        )
    if probed.reasons:
        counts = ", ".join(f"{reason} {rows:,}" for reason, rows in probed.reasons.items())
        notes.append(f"without an answer: {counts}")
    if probed.asked and not probed.spent["prompt_tokens"]:
        notes.append("the server does not say how many tokens an answer took")
    if not probed.left:
        return notes
    if "usd" not in probed.predicted:
        notes.append("no dollars: limits.usd_per_million_input and _output name no prices")
    if "hours" not in probed.predicted:
        return [*notes, "no time: too few requests were sent; probe more rows"]
    pace = probed.pace
    assert pace is not None
    notes.append(
        f"time: {probed.workers:,} worker{'s' * (probed.workers != 1)} with"
        f" {probed.at_once:,} requests at once{' each' * (probed.workers != 1)},"
        f" {probed.shards:,} shard{'s' * (probed.shards != 1)}"
    )
    if not pace.is_steady or probed.workers > 1:
        notes.append(
            f"if the model is as fast then as it was with {pace.at_once:,} requests at once"
        )
    return notes
