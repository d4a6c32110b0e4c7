"""`clipmill report`: writes a run's report, one HTML page."""

import argparse
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from clipmill.pipeline.terminal import aligned
from clipmill.pipeline.verbs import DONE
from clipmill.pipeline.verbs._options import add_show_unsafe, add_variant, beside, opened

if TYPE_CHECKING:
    from clipmill.metadata.stats import Estimate
    from clipmill.pipeline.ledger.proof.compare import Comparison
    from clipmill.pipeline.ledger.proof.results import Results

HELP = "a run on one HTML page"
EXAMPLES = """\
clipmill report --run run
clipmill report --run run --out mine.html
clipmill report --run run --baseline raw   # other arms against `raw`
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    add_variant(parser)
    add_show_unsafe(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="page to write (default: RUN.html or RUN-variant-N.html, beside the run folder; of a"
        " remote run, here)",
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
    """Writes the page; prints its results in a few lines, and its path."""
    from clipmill.pipeline.ledger.proof.results import results
    from clipmill.pipeline.report.build import report

    state = opened(options)
    suffix = ".html" if options.variant is None else f"-variant-{options.variant}.html"
    page = options.out or beside(options.run, suffix)
    page.write_text(report(state, options.baseline, options.variant), encoding="utf-8")
    if arms := results(state, options.baseline):
        print(f"{text(arms)}\n")
    print(page)
    return DONE


def text(results: "Results", each_task: bool = True) -> str:
    """Returns a table of the arms, best first: headline, difference to each baseline with verdict,
    and every task; then notes."""
    top = results.shown[0]
    ranked = [(-cell.result.value, cell) for cell in top.cells if cell.result]
    bases = results.baselines if len(results.arms) > 1 else ()
    others = [row for row in results.tasks if row is not top and each_task]
    against = [f"against {base}" for base in bases]
    lines = [["in points of 100", top.task, *against, *(row.task for row in others)]]
    lines.append(["", top.metric, *("" for _ in bases), *(row.metric for row in others)])
    for _, cell in sorted(ranked, key=itemgetter(0)):
        verdicts = map(_verdict, cell.against) if bases else ()
        by_task = [{c.arm: c.result for c in row.cells}[cell.arm] for row in others]
        lines.append([cell.arm, _points(cell.result), *verdicts, *map(_points, by_task)])
    named = [line for line in lines if any(line)]  # without a metric the second line is empty
    return "\n".join([*aligned(named), *_notes(results)])


def _notes(results: "Results") -> list[str]:
    """Returns notes to the table: seeds, noise, visible difference, chance, epochs."""
    top = results.shown[0]
    seeds = sorted({cell.seeds for row in results.shown for cell in row.cells if cell.result})
    counts = " to ".join(map(str, sorted({seeds[0], seeds[-1]})))
    claim = "no interval is claimed" if seeds[-1] < 2 else ""
    noise = claim or "± is half of a 95 % interval, of seeds and items"
    notes = [f"seeds an arm: {counts}; {noise}"]
    if top.visible is not None:
        notes.append(f"smallest difference that would have been seen: {100 * top.visible:.1f}")
    if near := [cell.arm for cell in top.cells if cell.near_chance]:
        notes.append(f"not told from guessing: {', '.join(near)}")
    if results.overfit:
        notes.append(f"more than 32 epochs: {', '.join(results.overfit)}")
    return notes


def _verdict(comparison: "Comparison | None") -> str:
    if comparison is None:
        return ""
    half = "" if comparison.half is None else f" ± {100 * comparison.half:.1f}"
    return f"{100 * comparison.apart.value:+.1f}{half}, {comparison.short}"


def _points(estimate: "Estimate | None") -> str:
    if estimate is None:
        return ""
    half = "" if estimate.high is None else f" ± {100 * (estimate.high - estimate.value):.1f}"
    return f"{100 * estimate.value:.1f}{half}"
