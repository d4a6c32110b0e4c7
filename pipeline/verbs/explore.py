"""`clipmill explore`: shows a run in a browser."""

import argparse
import contextlib
import threading

from clipmill.pipeline.verbs import DONE
from clipmill.pipeline.verbs._options import add_show_unsafe, add_variant, beside
from clipmill.pipeline.verbs._signals import stopped_by_signals

HELP = "look at a run in a browser: pictures, filters, thresholds to drag"
EXAMPLES = """\
clipmill explore --run run
clipmill explore --run run --port 8899   # as ssh -L forwards it
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    add_variant(parser)
    add_show_unsafe(parser)
    parser.add_argument(
        "--port", type=int, metavar="N", help="port to serve at, on loopback (default: a free one)"
    )


def run(options: argparse.Namespace) -> int:
    """Serves the explorer until Ctrl-C."""
    from clipmill.pipeline.explore.server import serving
    from clipmill.pipeline.explore.session import Session

    page = beside(options.run, ".yaml")
    session = Session(options.run, page, options.variant, options.show_unsafe)
    with (
        stopped_by_signals(),
        contextlib.suppress(KeyboardInterrupt),
        serving(session, options.port) as address,
    ):
        print(f"exploring {session.state.run} at {address} (Ctrl-C stops)", flush=True)
        threading.Event().wait()
    return DONE
