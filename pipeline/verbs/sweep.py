"""`clipmill sweep`: what a select stage would keep at other thresholds."""

import argparse
import json
from pathlib import Path

from pipeline.verbs import DONE
from pipeline.verbs._options import add_json, add_run

HELP = "what a select stage would keep at other thresholds"


def add(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    add_run(parser)
    add_json(parser)
    parser.add_argument("--stage", required=True, help="a select stage")
    parser.add_argument(
        "--vary", required=True, metavar="NAME=START:STOP:STEP", help="clip_score=0.10:0.40:0.02"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write plots and pictures too")


def run(options: argparse.Namespace) -> int:
    """Prints the rows kept at every value; with `--html` writes a page of them."""
    from pipeline.ledger.sweep import sweep, text
    from pipeline.report.sweep_page import sweep_page
    from pipeline.state import latest

    state = latest(options.run)
    found = sweep(state, options.stage, options.vary)
    if options.html:
        options.html.write_text(sweep_page(state, found), encoding="utf-8")
    print(json.dumps(found, indent=1) if options.json else text(found))
    return DONE
