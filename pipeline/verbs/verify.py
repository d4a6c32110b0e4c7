"""`clipmill verify`: checks every stored file of a run; makes damaged ones again."""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from clipmill.pipeline.terminal import plural
from clipmill.pipeline.verbs import DONE, FAILED
from clipmill.pipeline.verbs import run as run_verb
from clipmill.pipeline.verbs._options import add_executor, add_json, add_run, executor

if TYPE_CHECKING:
    from clipmill.pipeline.engine.verify import Checked

HELP = "check every stored file of a run against its record"
EXAMPLES = """\
clipmill verify --run run
clipmill verify --run run --repair
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    add_run(parser)
    add_json(parser)
    parser.add_argument(
        "--repair",
        action="store_true",
        help="make damaged files again, downloads too, and run the recipe to its end",
    )
    add_executor(parser)


def run(options: argparse.Namespace) -> int:
    """Prints what is damaged; with `--repair` makes it again."""
    from clipmill.pipeline.engine.run import run_plan
    from clipmill.pipeline.engine.verify import others, repair, verify
    from clipmill.pipeline.planning.plan import make_plan
    from clipmill.pipeline.progress import reading, watcher
    from clipmill.pipeline.run_folder.claim import refuse_another_seed
    from clipmill.pipeline.run_folder.state import latest

    state = latest(options.run)
    plan, folder = state.plan, state.run
    if folder.has("run.json"):  # else the next run writes it
        refuse_another_seed(plan, folder)
    with reading() as on_bytes:
        stages = verify(folder, on_bytes)
    print(json.dumps(as_json(stages), indent=1) if options.json else text(stages))
    if not any(checked.damaged for checked in stages):
        return DONE
    if not options.repair:
        return FAILED
    with executor(options) as workers, watcher() as watch:

        def run_until(stage: str) -> None:
            run_plan(make_plan(plan.recipe, stage), folder, workers, watch, keep_going=True)

        rows = repair(plan, folder, stages, run_until)
        print(f"at most {rows} rows are asked for again", file=sys.stderr)
        outcome = run_plan(plan, folder, workers, watch, keep_going=True)
    print(run_verb.text(outcome), file=sys.stderr)
    left = others(plan, stages)
    if left:
        print(f"left to the recipes that made them: {', '.join(left)}", file=sys.stderr)
    return DONE if outcome.complete and not left else FAILED


def as_json(stages: "list[Checked]") -> list[dict[str, Any]]:
    """Returns every folder: its files, their bytes, the damaged ones."""
    return [
        {
            "folder": checked.folder,
            "files": checked.files,
            "bytes": checked.size_bytes,
            "damaged": [{"file": damage.name, "found": damage.found} for damage in checked.damaged],
        }
        for checked in stages
    ]


def text(stages: "list[Checked]") -> str:
    """Returns a line for each folder and damaged file, and a total."""
    lines = []
    for checked in stages:
        verdict = f"{len(checked.damaged)} damaged" if checked.damaged else "as stored"
        files = f"{plural(checked.files, 'file')}, {checked.size_bytes:,} bytes"
        lines.append(f"{checked.folder}  {files}: {verdict}")
        lines += [f"  {damage.name}: {damage.found}" for damage in checked.damaged]
    count = sum(checked.files for checked in stages)
    damaged = sum(len(checked.damaged) for checked in stages)
    if damaged:
        lines.append(f"{damaged} of {count} files are damaged: with --repair they are made again")
    else:
        lines.append(f"all {count} files are as they were stored")
    return "\n".join(lines)
