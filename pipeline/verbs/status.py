"""`clipmill status`: shows a run's progress, whether it is at work, and what failed."""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from clipmill.pipeline.verbs import DONE
from clipmill.pipeline.verbs._options import add_json, add_run

if TYPE_CHECKING:
    from clipmill.pipeline.run_folder.live import LiveRun

HELP = "how far a run is, whether it works, and what failed"
EXAMPLES = """\
clipmill status --run run
clipmill status --run run --watch
clipmill status --run s3://bucket/run --json
"""
WATCH_S = 3.0
PAGE = 100  # least columns of the text


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    add_run(parser)
    add_json(parser)
    parser.add_argument(
        "--resources", action="store_true", help="the workers of each machine instead of stages"
    )
    parser.add_argument(
        "--watch", action="store_true", help="again every 3 seconds, until the run ends"
    )


def run(options: argparse.Namespace) -> int:
    """Prints a line a stage, and the cause of each failure; or the workers by machine."""
    from clipmill.pipeline.run_folder.live import status

    live = status(options.run)
    shown = workers if options.resources else text
    if shown is text and options.watch and live.works and sys.stdout.isatty() and not options.json:
        live = _drawn(live, options.run)
    while options.watch and live.works:
        _print(live, options.json, shown)
        print(flush=True)
        time.sleep(WATCH_S)
        live = status(options.run)
    _print(live, options.json, shown)
    return DONE


def _print(live: "LiveRun", as_json: bool, shown: Callable[["LiveRun", float], str]) -> None:
    from clipmill.pipeline.run_folder.live import as_json as json_of

    now = time.time()
    print(json.dumps(json_of(live, now), indent=1) if as_json else shown(live, now))


def _drawn(live: "LiveRun", run: str) -> "LiveRun":
    """Redraws the run until it ends; returns its last state."""
    from rich.console import Group
    from rich.text import Text

    from clipmill.pipeline.progress import board
    from clipmill.pipeline.run_folder.live import status
    from clipmill.pipeline.terminal import drawing, harmless

    def draw(height: int) -> Group:
        now = time.time()
        head = Text(harmless(headline(live, now)), "bold", no_wrap=True, overflow="ellipsis")
        return Group(head, board(live, now, height - 1))

    with drawing(draw, 1.0, sys.stdout):
        while live.works:
            time.sleep(WATCH_S)
            live = status(run)
    return live


def text(live: "LiveRun", now: float) -> str:
    """Returns the headline, a line a stage, and the failures: what, where, what to do."""
    from clipmill.pipeline.progress import board
    from clipmill.pipeline.terminal import as_text

    width = max(PAGE, shutil.get_terminal_size((PAGE, 24)).columns)
    lines = as_text(board(live, now, bars=False), width)
    notes = [f"note: {note}" for note in live.notes]
    return "\n".join([headline(live, now), *notes, "", lines, *causes(live)])


def workers(live: "LiveRun", now: float) -> str:
    """Returns the headline, and a line for equal workers of a machine: what they hold and do."""
    from clipmill.pipeline.terminal import aligned

    rows: list[tuple[str, ...]] = [("machine", "workers", "CPUs", "GPUs", "works on")]
    for found in live.placed:
        held = (f"{found.workers * amount:g}" for amount in (found.cpus, found.gpus))
        rows.append((found.machine, str(found.workers), *held, found.step or "nothing now"))
    lines = aligned(rows, right=(1, 2, 3)) if live.placed else ["no worker lives now"]
    return "\n".join([headline(live, now), "", *lines])


def headline(live: "LiveRun", now: float) -> str:
    """Returns in words whether a process works in the run folder, and since when."""
    from clipmill.pipeline.run_folder.words import duration

    who = f"process {live.pid} on {live.host}"
    ago = "" if live.updated is None else f"{duration(now - live.updated)} ago"
    words = {
        "starting": f"at work: {who}, which begins a run or makes an export",
        "running": f"running: {who}, last sign of life {ago}",
        "complete": "complete",
        "part": f"not complete: the last run ended {ago} with all that it was asked for",
        "failed": f"not complete: the last run ended {ago} with failures",
        "stopped": f"not complete: the last run was stopped {ago}".rstrip(),
        "gone": f"not complete: nobody works here; {who} went without a word, last seen {ago}",
    }[live.phase]
    return f"{live.run}: {live.recipe}, {words}"


def causes(live: "LiveRun") -> list[str]:
    """Returns lines on every failure: what, where, and what to do."""
    lines = []
    for name, stage in live.stages.items():
        for cause in stage.causes:
            shard = "" if cause.shard is None else f", shard {cause.shard}"
            lines += [
                "",
                f"{name}{shard}: {cause.found}",
                f"  where: {cause.where}",
                f"  do:    {cause.do}",
            ]
    return lines
