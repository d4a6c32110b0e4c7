"""`clipmill run`: runs or resumes a recipe."""

import argparse
import json
import re
import shlex
import sys
import time
from typing import TYPE_CHECKING, Any

from clipmill.metadata.damage import DamagedError
from clipmill.pipeline.terminal import plural
from clipmill.pipeline.verbs import DONE, FAILED, status
from clipmill.pipeline.verbs._options import (
    add_executor,
    add_recipe,
    add_retry,
    executor,
    planned,
    run_command,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from clipmill.pipeline.engine.run import Outcome
    from clipmill.pipeline.errors import ClipmillError
    from clipmill.pipeline.ledger.summary import Summary
    from clipmill.pipeline.planning.plan import Plan
    from clipmill.pipeline.run_folder.state import RunState

MOST_PICTURES = 200_000  # for which the summary computes intervals: a second or two
HELP = "run a recipe; run it again to go on where it stopped"
EXAMPLES = """\
clipmill run mine.yaml --out run
clipmill run mine.yaml --out run --set images.timeout_s=20
clipmill run mine.yaml --out run --retry timeout --retry refused
clipmill run quickstart --out s3://bucket/run --executor ray --address auto
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    add_recipe(parser)
    parser.add_argument("--out", metavar="URI", required=True, help="run folder: a path or s3://…")
    add_executor(parser)
    add_retry(parser)
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    parser.add_argument(
        "--profile",
        metavar="STAGE",
        help="profile this stage's workers, three shards of each, into OUT/profiles",
    )
    parser.add_argument(
        "--log",
        metavar="FILE",
        help="append a line of JSON for each event: time, run, stage, shard, attempt, seconds",
    )


def run(
    options: argparse.Namespace, then: "Callable[[Outcome], None]" = lambda outcome: None
) -> int:
    """Runs the plan, calls `then`, and prints how it ended.

    A damaged file found only by the summary is made again, too.
    """
    began = time.monotonic()
    plan = planned(options)
    from clipmill.metadata.storage import Storage
    from clipmill.pipeline.engine.run import run_plan
    from clipmill.pipeline.engine.verify import heal
    from clipmill.pipeline.ledger.answer import as_json as answer_json
    from clipmill.pipeline.ledger.selection.variants import sharing, whole
    from clipmill.pipeline.ledger.summary import summary
    from clipmill.pipeline.log import logged
    from clipmill.pipeline.planning.looks import look, refuse_missing
    from clipmill.pipeline.planning.plan import check_retry
    from clipmill.pipeline.progress import watcher
    from clipmill.pipeline.run_folder.claim import other_code
    from clipmill.pipeline.run_folder.live import Together
    from clipmill.pipeline.run_folder.ran import forgotten
    from clipmill.pipeline.run_folder.sessions import session
    from clipmill.pipeline.run_folder.variants import run_again
    from clipmill.pipeline.verbs._plan_page import notes

    check_retry(plan, options.retry)
    _check_profile(plan, options.profile)
    folder = Storage(options.out)
    for note in [*notes(plan), *other_code(plan, folder), *forgotten(plan.recipe, folder)]:
        print(f"clipmill: note: {note}", file=sys.stderr)
    retry, healed = tuple(options.retry), set[str]()
    others = sharing(plan, folder, retry) if retry else []
    for other in others:
        print(
            f"clipmill: note: --retry makes variant {other.number} stale, which shares rows that"
            f" are tried again; it is made again by {run_again(folder, other)}",
            file=sys.stderr,
        )
    with executor(options) as workers:
        refuse_missing(plan, look(plan, folder))
        while True:
            with (
                watcher() as watch,
                logged(options.log, watch) as watch,
                session(folder, plan.recipe.name) as spent,
            ):
                if options.executor == "ray":
                    from clipmill.pipeline.ray_metrics import Metered

                    watch = Together(Metered(), watch)
                outcome = run_plan(
                    plan,
                    folder,
                    workers,
                    watch,
                    retry,
                    keep_going=options.keep_going,
                    profile=options.profile,
                )
                spent.update(outcome.spent)
            try:
                then(outcome)
                still_whole = [other.number for other in whole(others, folder)]
                made_stale = [other for other in others if other.number not in still_whole]
                stale = {other.number: run_again(folder, other) for other in made_stale}
                answer = summary(outcome.state, time.monotonic() - began, options.retry, stale)
                if options.json:
                    outcome_json = {**as_json(outcome), "summary": answer_json(answer)}
                    shown = json.dumps(outcome_json, indent=1)
                else:
                    shown = page(outcome, answer, _again(options))
                break
            except DamagedError as damage:
                stage = heal(plan, folder, damage, healed)
                print(f"{stage}: {damage.name} is damaged: made again", file=sys.stderr)
                retry = ()  # these rows were retried already
    print(shown)
    if options.profile:
        where = f"{folder}/profiles/{options.profile}"
        print(f"clipmill: note: {where} opens in speedscope.app or Perfetto", file=sys.stderr)
    return code(outcome, answer)


def _check_profile(plan: "Plan", stage: str | None) -> None:
    """Raises RecipeError if the plan has no such stage, or its profiler is not installed."""
    from importlib.util import find_spec

    from clipmill.pipeline.engine.profiling import profiler_of
    from clipmill.pipeline.errors import RecipeError, did_you_mean
    from clipmill.pipeline.extras import missing

    if stage is None:
        return
    if stage not in plan.stages:
        do = did_you_mean(stage, list(plan.stages), "the recipe has")
        raise RecipeError(f"no stage '{stage}'", f"--profile {stage}", do)
    package = profiler_of(plan.stages[stage])
    if find_spec(package) is None:
        raise missing(package, f"--profile {stage}")


def code(outcome: "Outcome", answer: "Summary") -> int:
    """Returns the exit code: a run that kept nothing has failed, like one that is not complete."""
    return DONE if outcome.complete and not answer.empty else FAILED


def _again(options: argparse.Namespace) -> str:
    """Returns the command of this run, ready to paste."""
    words = ["--executor", options.executor] if options.executor != "local" else []
    words += ["--address", options.address] if options.address else []
    words += ["--workers", str(options.workers)] if options.workers is not None else []
    return " ".join(filter(None, [run_command(options, options.until), shlex.join(words)]))


def as_json(outcome: "Outcome") -> dict[str, Any]:
    """Returns how the run ended: its status, and the errors that stopped stages."""
    from clipmill.pipeline.run_folder import live

    return {
        **live.as_json(live.live_run(outcome.state, "complete"), time.time()),
        "complete": outcome.complete,
        "stopped": {
            name: dict(zip(("found", "where", "do"), error.args, strict=True)) if error else None
            for name, error in outcome.stopped.items()
        },
    }


def page(outcome: "Outcome", answer: "Summary", again: str) -> str:
    """Returns how the run ended: errors first, then the summary and the next commands."""
    from clipmill.pipeline.verbs import _summary_page

    nothing = _summary_page.nothing(answer) if outcome.complete else ""
    errors = [error.args[2] for error in outcome.stopped.values() if error]
    mended = dict.fromkeys(word for do in errors for word in re.findall(r"--set \S+=\S+\b", do))
    results = scored(outcome.state) if outcome.complete else ""
    summed = _summary_page.text(answer, again, outcome.complete, tuple(mended), results)
    return f"{nothing or text(outcome)}\n\n{summed}"


def scored(state: "RunState") -> str:
    """Returns the arms' headline as `clipmill report` prints it; empty if none was evaluated, or if
    their pictures are so many that intervals would take long."""
    from clipmill.pipeline.ledger.proof.trials import arms

    every = arms(state)
    trials = [trial for arm in every for trial in arm.trials]
    pictures = sum(task.pictures for trial in trials for task in trial.tasks.values())
    if not every or pictures > MOST_PICTURES:
        return ""
    from clipmill.pipeline.ledger.proof.results import compared
    from clipmill.pipeline.verbs.report import text

    return text(compared(every, [every[0].name]), each_task=False)


def text(outcome: "Outcome") -> str:
    """Returns that the run is done, or what stopped it and which shards failed."""
    from clipmill.pipeline.run_folder import live

    state = outcome.state
    if outcome.complete:
        return f"done: {plural(len(state.stages), 'stage')} in {state.run}"
    # By error: a full disk stops all stages that run, and is shown once.
    stops: dict[tuple[str, str], tuple[ClipmillError, list[str]]] = {}
    for name, error in outcome.stopped.items():
        if error is not None:
            problem, _, do = error.args
            stops.setdefault((problem, do), (error, []))[1].append(name)
    lines = [f"{', '.join(names)}: {error}\n" for error, names in stops.values()]
    waiting = [
        name
        for name, error in outcome.stopped.items()
        if error is None and not state.stages[name].complete
    ]
    if waiting:
        lines.append(f"not complete: {', '.join(waiting)}")
    if failures := status.causes(live.live_run(state, "complete")):
        lines += [*failures, ""]
    return "\n".join([*lines, "finished shards are kept: mend the cause and run again"])
