"""`clipmill run`: runs a recipe, from where it stopped."""

import argparse
import json
import re
import shlex
import sys
import time
from typing import TYPE_CHECKING, Any

from clipmill.metadata.damage import DamagedError
from clipmill.pipeline.verbs import DONE, FAILED, status
from clipmill.pipeline.verbs._options import (
    add_executor,
    add_recipe,
    add_retry,
    executor,
    planned,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from clipmill.pipeline.engine.run import Outcome
    from clipmill.pipeline.errors import ClipmillError
    from clipmill.pipeline.ledger.summary import Summary
    from clipmill.pipeline.run_folder.state import RunState

MOST_PICTURES = 200_000  # of all evaluations whose intervals are computed: a second or two
HELP = "run a recipe; run it again to go on where it stopped"
EXAMPLES = """\
clipmill run mine.yaml --out run
clipmill run mine.yaml --out run --set images.timeout_s=20
clipmill run mine.yaml --out run --retry timeout --retry refused
clipmill run quickstart --out s3://bucket/run --executor ray --address auto
"""


def add(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    add_recipe(parser)
    parser.add_argument("--out", metavar="URI", required=True, help="run folder: a path or s3://…")
    add_executor(parser)
    add_retry(parser)
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")


def run(
    options: argparse.Namespace, then: "Callable[[Outcome], None]" = lambda outcome: None
) -> int:
    """Runs the plan, calls `then`, and prints how it ended.

    A damaged file that is met only in telling how it ended is made again, as one that a stage met.
    """
    began = time.monotonic()
    plan = planned(options)
    from clipmill.metadata.storage import Storage
    from clipmill.pipeline.engine.run import run_plan
    from clipmill.pipeline.engine.verify import heal
    from clipmill.pipeline.ledger.answer import as_json as answer_json
    from clipmill.pipeline.ledger.summary import summary
    from clipmill.pipeline.planning.looks import look, refuse_missing
    from clipmill.pipeline.planning.retries import check_retry
    from clipmill.pipeline.progress import watcher
    from clipmill.pipeline.run_folder.claim import other_code
    from clipmill.pipeline.run_folder.ran import forgotten
    from clipmill.pipeline.run_folder.sessions import session
    from clipmill.pipeline.verbs._plan_page import notes

    check_retry(plan, options.retry)
    folder = Storage(options.out)
    for note in [*notes(plan), *other_code(plan, folder), *forgotten(plan.recipe, folder)]:
        print(f"clipmill: note: {note}", file=sys.stderr)
    retry, healed = tuple(options.retry), set[str]()
    with executor(options) as workers:
        refuse_missing(plan, look(plan, folder))
        while True:
            with watcher() as watch, session(folder, plan.recipe.name):
                outcome = run_plan(
                    plan, folder, workers, watch, retry, keep_going=options.keep_going
                )
            try:
                then(outcome)
                answer = summary(outcome.state, time.monotonic() - began, options.retry)
                if options.json:
                    told = {**as_json(outcome), "summary": answer_json(answer)}
                    said = json.dumps(told, indent=1)
                else:
                    said = page(outcome, answer, _command(options))
                break
            except DamagedError as found:
                stage = heal(plan, folder, found, healed)
                print(f"{stage}: {found.name} is damaged: made again", file=sys.stderr)
                retry = ()  # those rows were tried again
    print(said)
    return code(outcome, answer)


def code(outcome: "Outcome", answer: "Summary") -> int:
    """A run that kept nothing has failed, as one that is not complete."""
    return DONE if outcome.complete and not answer.empty else FAILED


def _command(options: argparse.Namespace) -> str:
    """The command that runs the same again, ready to paste."""
    words = ["clipmill", "run", options.recipe]
    for override in options.overrides:
        words += ["--set", override]
    words += ["--until", options.until] if options.until else []
    for folder in options.own_stages:
        words += ["--stages", folder]
    words += ["--out", options.out]
    words += ["--executor", options.executor] if options.executor != "local" else []
    words += ["--address", options.address] if options.address else []
    words += ["--workers", str(options.workers)] if options.workers is not None else []
    return shlex.join(words)


def as_json(outcome: "Outcome") -> dict[str, Any]:
    """How the run ended: the status, and why what is not complete is not."""
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
    """How the run ended: its trouble first, then the summary and the next commands."""
    from clipmill.pipeline.verbs import _summary_page

    nothing = _summary_page.nothing(answer) if outcome.complete else ""
    errors = [error.args[2] for error in outcome.stopped.values() if error]
    mended = dict.fromkeys(word for do in errors for word in re.findall(r"--set \S+=\S+\b", do))
    told = scored(outcome.state) if outcome.complete else ""
    summed = _summary_page.text(answer, again, outcome.complete, tuple(mended), told)
    return f"{nothing or text(outcome)}\n\n{summed}"


def scored(state: "RunState") -> str:
    """The arms by their headline, as `clipmill report` prints it; empty where none was evaluated,
    or so many pictures that their intervals would keep the run waiting."""
    from clipmill.pipeline.ledger.proof.results import compared
    from clipmill.pipeline.ledger.proof.trials import arms
    from clipmill.pipeline.verbs.report import text

    every = arms(state)
    trials = [trial for arm in every for trial in arm.trials]
    pictures = sum(task.pictures for trial in trials for task in trial.tasks.values())
    if not every or pictures > MOST_PICTURES:
        return ""
    return text(compared(every, [every[0].name]), each_task=False)


def text(outcome: "Outcome") -> str:
    """That all is there; else what stopped, and which shards failed."""
    state = outcome.state
    if outcome.complete:
        return f"done: {len(state.stages)} stages in {state.run}"
    lines = []
    for error, names in _stops(outcome).values():
        lines.append(f"{', '.join(names)}: {error}\n")
    waiting = [
        name
        for name, error in outcome.stopped.items()
        if error is None and not state.stages[name].complete
    ]
    if waiting:
        lines.append(f"not complete: {', '.join(waiting)}")
    if failures := status.failures(state):
        lines += [*failures, ""]
    return "\n".join([*lines, "finished shards are kept: mend the cause and run again"])


def _stops(outcome: "Outcome") -> "dict[tuple[str, str], tuple[ClipmillError, list[str]]]":
    """What stopped stages, and which: a full disk stops all that run, and is told once."""
    stops: dict[tuple[str, str], tuple[ClipmillError, list[str]]] = {}
    for name, error in outcome.stopped.items():
        if error is not None:
            found, _, do = error.args
            stops.setdefault((found, do), (error, []))[1].append(name)
    return stops
