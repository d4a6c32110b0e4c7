"""`clipmill funnel`: where the pool's rows went, by stage and reason."""

import argparse
import json

from pipeline.verbs import DONE
from pipeline.verbs._options import add_json, add_run

HELP = "where the pool's rows went, by stage and reason"


def add(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    add_run(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Prints the counts."""
    from pipeline.ledger import funnel
    from pipeline.state import latest

    found = funnel.funnel(latest(options.run))
    print(json.dumps(found, indent=1) if options.json else funnel.text(found))
    return DONE
