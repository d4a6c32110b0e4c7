"""`clipmill report`: a run on one HTML page."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.verbs import DONE
from pipeline.verbs._options import add_run, beside

if TYPE_CHECKING:
    from metadata.stats import Estimate
    from pipeline.ledger.results import Results

HELP = "a run on one HTML page"
EXAMPLES = """\
clipmill report --run run
clipmill report --run run --out mine.html
clipmill report --run run --baseline raw   # other arms against `raw`
"""


def add(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    add_run(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="page to write (default: RUN.html beside the run folder; of a remote run, here)",
    )
    parser.add_argument(
        "--baseline",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="compare results with those of this export, training or stage before them",
    )


def run(options: argparse.Namespace) -> int:
    """Writes the page; prints its results in a few lines, and where it is."""
    from pipeline.ledger.results import results
    from pipeline.report.build import report
    from pipeline.run_folder.state import latest

    state = latest(options.run)
    page = options.out or beside(options.run, ".html")
    page.write_text(report(state, options.baseline), encoding="utf-8")
    if arms := results(state, options.baseline):
        print(f"{text(arms)}\n")
    print(page)
    return DONE


def text(results: "Results") -> str:
    """One metric a task: every arm, and its difference to the first baseline; then the verdicts on
    the headline, and what to beware of."""
    base, arms = results.baselines[0], results.arms
    seeds = {cell.seeds for row in results.shown for cell in row.cells}
    counts = " to ".join(map(str, sorted({min(seeds), max(seeds)})))
    others = [arm for arm in arms if arm != base]
    head = ["in points of 100", "", *arms, *(f"{arm} - {base}" for arm in others)]
    lines = [head]
    for row in results.shown:
        by_arm = {cell.arm: cell for cell in row.cells}
        means = [_points(by_arm[arm].result, "") for arm in arms]
        against = [by_arm[arm].against[0] for arm in others]
        apart = [_points(found.apart if found else None, "+") for found in against]
        lines.append([row.task, row.metric, *means, *apart])
    width = [max(len(line[i]) for line in lines) for i in range(len(head))]
    table = [
        "  ".join(
            cell.ljust(width[i]) if i < 2 else cell.rjust(width[i]) for i, cell in enumerate(line)
        ).rstrip()
        for line in lines
    ]
    noise = "; a difference has Welch's 95 % interval, of seeds and items" if others else ""
    return "\n".join([*table, f"seeds an arm: {counts}{noise}", *_verdicts(results)])


def _verdicts(results: "Results") -> list[str]:
    """What the first row of the table says in words."""
    top = results.shown[0]
    said = [
        f"{one.words} ({one.arm}, {one.baseline})"
        if one.verdict in ("none", "unclaimed")
        else one.words
        for cell in top.cells
        for one in cell.against
        if one
    ]
    if top.visible is not None:
        said.append(f"the smallest difference that could be seen: {100 * top.visible:.1f}")
    if near := [cell.arm for cell in top.cells if cell.near_chance]:
        said.append(f"not told from guessing: {', '.join(near)}")
    if results.worn:
        said.append(f"more than 32 epochs: {', '.join(results.worn)}")
    return [f"{top.task}{' ' if top.metric else ''}{top.metric}: {line}" for line in said]


def _points(estimate: "Estimate | None", sign: str) -> str:
    if estimate is None:
        return ""
    value = f"{100 * estimate.value:{sign}.1f}"
    if not sign or estimate.low is None or estimate.high is None:
        return value
    return f"{value} ({100 * estimate.low:+.1f} to {100 * estimate.high:+.1f})"
