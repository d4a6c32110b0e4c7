"""`clipmill report`: a run on one HTML page."""

import argparse
from pathlib import Path

from pipeline.verbs import DONE
from pipeline.verbs._options import add_run

HELP = "a run on one HTML page"


def add(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    add_run(parser)
    parser.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE")
    parser.add_argument(
        "--baseline",
        nargs="+",
        default=[],
        metavar="NAME",
        help="arm that results are compared with: an export, a training, a stage on its way",
    )


def run(options: argparse.Namespace) -> int:
    """Writes the page; prints its results in a few lines, and where it is."""
    from pipeline.ledger.results import headline, results
    from pipeline.report.build import report
    from pipeline.state import latest

    state = latest(options.run)
    options.out.write_text(report(state, options.baseline), encoding="utf-8")
    if arms := results(state, options.baseline):
        print(f"{headline(arms)}\n")
    print(options.out)
    return DONE
