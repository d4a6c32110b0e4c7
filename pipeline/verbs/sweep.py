"""`clipmill sweep`: counts what a select stage would keep at other thresholds."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from clipmill.pipeline.terminal import aligned, one_line, percent
from clipmill.pipeline.verbs._options import (
    add_json,
    add_show_unsafe,
    add_variant,
    answered,
    opened,
)

if TYPE_CHECKING:
    from clipmill.pipeline.ledger.selection.sweep import Sweep

HELP = "what a select stage would keep at other thresholds"
EXAMPLES = """\
clipmill sweep --run run --stage subset --vary clip_score=0.10:0.40:0.02
clipmill sweep --run r --stage subset --vary min_side=50:400:50 --html p.html
"""
NAMED = 3  # groups with a share in the table


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    add_variant(parser)
    add_json(parser)
    parser.add_argument("--stage", required=True, metavar="STAGE", help="a select stage of the run")
    parser.add_argument(
        "--vary",
        required=True,
        metavar="NAME=START:STOP:STEP",
        help="threshold and range, as in clip_score=0.10:0.40:0.02; a wrong name lists all",
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write a page with plots and pictures too"
    )
    add_show_unsafe(parser)


def run(options: argparse.Namespace) -> int:
    """Prints the rows kept at every value; with `--html` writes a page."""
    from clipmill.pipeline.ledger.selection.sweep import sweep
    from clipmill.pipeline.report.sweep_page import sweep_page

    state = opened(options)
    answer = sweep(state, options.stage, options.vary)
    if options.html:
        options.html.write_text(sweep_page(state, answer), encoding="utf-8")
    return answered(answer, options, text)


def text(sweep: "Sweep") -> str:
    """Returns a line a value, with the shares of the largest groups."""
    share = sweep.kept / sweep.rows if sweep.rows else 0.0
    lines = [
        f"{sweep.run}: '{sweep.stage}' keeps {sweep.kept:,} of {sweep.rows:,} rows"
        f" ({percent(share)}) with {one_line(sweep.today)}",
        "",
    ]
    named = [
        (group, name)
        for group, counts in sweep.groups.items()
        for name in list(counts)[:NAMED]
        if any(len(point.groups[group]) > 1 for point in sweep.points)
    ]
    heads = (one_line(name)[-14:] for _, name in named)
    rows = [[sweep.vary, "kept", "share", "common", "won", "lost", *heads]]
    for point in sweep.points:
        shares = (
            percent(point.groups[group].get(name, 0) / max(1, point.kept)) for group, name in named
        )
        counts = (f"{count:,}" for count in (point.common, point.won, point.lost))
        value, kept = f"{point.value:.15g}", f"{point.kept:,}"  # the steps, not rounded to one
        rows.append([value, kept, percent(point.share), *counts, *shares])
    lines += aligned(rows, range(len(rows[0])))
    if named:
        lines += ["", "the last columns: share of the kept rows, of the groups largest today"]
    return "\n".join(lines)
