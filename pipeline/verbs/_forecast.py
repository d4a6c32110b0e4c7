"""`clipmill plan --rows N --hardware FILE`: what a run over more rows would take."""

import argparse
from contextlib import closing

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.ledger.forecast import (
    Forecast,
    Hardware,
    StageForecast,
    forecast,
    read_hardware,
)
from clipmill.pipeline.planning.plan import Plan
from clipmill.pipeline.progress import watcher
from clipmill.pipeline.run_folder.origin import refuse_another_pool
from clipmill.pipeline.run_folder.sessions import session
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.run_folder.words import duration, size
from clipmill.pipeline.verbs._options import answered
from clipmill.pipeline.verbs._signals import stopped_by_signals

NOTES = {
    "clock": "by the clock of the smaller run, not by its processors",
    "rate": "by rows_per_s of the profile",
    "nothing": "not in it: the smaller run has not done it",
}


def run(plan: Plan, options: argparse.Namespace) -> int:
    """Prints a forecast; with `--probe-shards`, first runs that many shards of each root."""
    if not (options.rows and options.hardware and options.out):
        do = "give --rows 1e9 --hardware profile.yaml --out RUN, the folder of a smaller run"
        raise RecipeError("a forecast lacks one of its three arguments", "the arguments", do)
    rows, hardware = _rows(options.rows), read_hardware(options.hardware)
    folder = Storage(options.out)
    refuse_another_pool(plan, folder)
    if options.probe_shards is not None:
        _probe(plan, folder, options)
    found = forecast(RunState(plan, folder), rows, hardware)
    return answered(found, options, lambda found: page(found, hardware))


def _rows(text: str) -> int:
    try:
        rows = int(float(text.replace("_", "").replace(",", "")))
    except (ValueError, OverflowError):
        rows = 0
    if rows < 1:
        raise RecipeError(f"--rows {text}", "the arguments", "give a number: 1.28e9")
    return rows


def _probe(plan: Plan, folder: Storage, options: argparse.Namespace) -> None:
    """Runs the plan over the first shards of each root; a later run goes on from them."""
    most, state = options.probe_shards, RunState(plan, folder)
    if most < 1:
        raise RecipeError(f"--probe-shards {most}", "the arguments", "give 1 or more")
    for name, stage in state.stages.items():
        if stage.planned.is_root and (stage.total or 0) > most:
            found = f"'{name}' has {stage.total:,} shards there"
            raise RecipeError(found, str(folder), "leave --probe-shards out: they are enough")
    with (
        closing(LocalExecutor(options.workers)) as here,
        stopped_by_signals(),
        watcher() as watch,
        session(folder, plan.recipe.name) as spent,
    ):
        outcome = run_plan(plan, folder, here, watch, most_shards=most)
        spent.update(outcome.spent)
    for error in filter(None, outcome.stopped.values()):
        raise error


def page(found: Forecast, hardware: Hardware) -> str:
    """Returns one line per stage, the sums, and how each estimate was made."""
    names = max(8, *(len(stage.stage) for stage in found.stages))
    head = ("core-hours", "GPU-hours", "time", "stored", "objects", "requests")
    lines = [
        f"{found.rows:,} rows on {hardware.nodes} nodes, from a run over {found.of_rows:,};"
        " computed, not run",
        f"  {'':<{names}}" + "".join(f"{word:>12}" for word in head),
    ]
    lines += [_line(names, stage.stage, stage) for stage in found.stages]
    lines.append(_line(names, "together", found))
    lines.append(
        f"  {found.usd:,.2f} dollars for machines and requests, {found.usd_per_month:,.2f} a month"
        f" for what is stored; bottleneck: {found.bottleneck}"
    )
    for by, words in NOTES.items():
        if named := [stage.stage for stage in found.stages if stage.by == by]:
            lines.append(f"  {', '.join(named)}: {words}")
    return "\n".join(lines)


def _line(names: int, name: str, part: Forecast | StageForecast) -> str:
    hours = (part.core_hours, part.gpu_hours)
    columns = [
        *(f"{value:,.0f}" if value >= 99.5 else f"{value:.2g}" for value in hours),
        duration(part.hours * 3600),
        size(part.bytes),
        f"{part.objects:,}",
        f"{part.puts + part.gets:,}",
    ]
    return f"  {name:<{names}}" + "".join(f"{column:>12}" for column in columns)
