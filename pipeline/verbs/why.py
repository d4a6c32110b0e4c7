"""`clipmill why`: what every stage stored for one sample, and why it left."""

import argparse
import json

from pipeline.verbs import DONE
from pipeline.verbs._options import add_json, add_run

HELP = "what every stage said of one sample, and why it went"


def add(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    parser.add_argument("uid", help="32 hex digits, or the first 8 or more of them")
    add_run(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Prints the sample's values, stage by stage."""
    from pipeline.ledger import why
    from pipeline.state import latest

    found = why.why(latest(options.run), options.uid)
    print(json.dumps(found, indent=1) if options.json else why.text(found))
    return DONE
