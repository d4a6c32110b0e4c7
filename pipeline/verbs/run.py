"""`clipmill run`: runs a recipe, from where it stopped."""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from pipeline.verbs import DONE, FAILED, status
from pipeline.verbs._options import (
    add_executor,
    add_recipe,
    add_retry,
    check_retry,
    executor,
    planned,
)

if TYPE_CHECKING:
    from pipeline.engine.run import Outcome
    from pipeline.errors import ClipmillError

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
    parser.add_argument(
        "--keep-going",
        action="store_true",
        help="go on where nearly all rows of a stage's first shards fail for one reason",
    )
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")


def run(options: argparse.Namespace) -> int:
    """Runs the plan and prints how it ended."""
    plan = planned(options)
    from metadata.storage import Storage
    from pipeline.engine.run import run_plan
    from pipeline.progress import watcher
    from pipeline.run_folder.ran import forgotten
    from pipeline.verbs._plan_page import notes

    check_retry(plan, options.retry)
    folder = Storage(options.out)
    for note in [*notes(plan), *forgotten(plan.recipe, folder)]:
        print(f"clipmill: note: {note}", file=sys.stderr)
    with executor(options) as workers, watcher() as watch:
        outcome = run_plan(
            plan, folder, workers, watch, tuple(options.retry), keep_going=options.keep_going
        )
    print(json.dumps(as_json(outcome), indent=1) if options.json else text(outcome))
    return DONE if outcome.complete else FAILED


def as_json(outcome: "Outcome") -> dict[str, Any]:
    """How the run ended: the status, and why what is not complete is not."""
    return {
        **status.as_json(outcome.state),
        "complete": outcome.complete,
        "stopped": {
            name: dict(zip(("found", "where", "do"), error.args, strict=True)) if error else None
            for name, error in outcome.stopped.items()
        },
    }


def text(outcome: "Outcome") -> str:
    """How the run ended, in a few lines."""
    state = outcome.state
    lines = []
    for error, names in _stops(outcome).values():
        lines += [f"{', '.join(names)}: {error}", ""]
    waiting = [
        name
        for name, error in outcome.stopped.items()
        if error is None and not state.stages[name].complete
    ]
    if waiting:
        lines.append(f"not complete: {', '.join(waiting)}")
    lines += status.failures(state)
    if outcome.complete:
        lines.append(f"done: {len(state.stages)} stages in {state.run}")
        for name, stage in state.stages.items():
            if stage.planned.gives_data:
                lines.append(f"  {name}: {stage.folder}/out")
        lines.append(f"next: clipmill funnel --run {state.run}")
    else:
        lines += ["", "finished shards are kept: mend the cause and run the same command again"]
    return "\n".join(lines)


def _stops(outcome: "Outcome") -> "dict[tuple[str, str], tuple[ClipmillError, list[str]]]":
    """What stopped stages, and which: a full disk stops all that run, and is told once."""
    stops: dict[tuple[str, str], tuple[ClipmillError, list[str]]] = {}
    for name, error in outcome.stopped.items():
        if error is not None:
            found, _, do = error.args
            stops.setdefault((found, do), (error, []))[1].append(name)
    return stops
