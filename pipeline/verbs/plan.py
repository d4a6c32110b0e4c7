"""`clipmill plan`: checks a recipe and shows what would run."""

import argparse
import json

from pipeline.verbs import DONE
from pipeline.verbs._options import add_json, add_recipe, planned

HELP = "check a recipe and show what would run"
EXAMPLES = """\
clipmill plan quickstart
clipmill plan mine.yaml --set pool.path=data.csv
clipmill plan mine.yaml --out run   # with what of it is done there
"""


def add(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    add_recipe(parser)
    parser.add_argument("--out", metavar="URI", help="run folder: also show what is done there")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Prints the plan; with `--out` also what of it is done."""
    plan = planned(options)
    from metadata.storage import Storage
    from pipeline.run_folder.origin import refuse_another_pool
    from pipeline.run_folder.state import RunState
    from pipeline.verbs import _plan_page

    state = None
    if options.out:
        folder = Storage(options.out)
        refuse_another_pool(plan, folder)
        state = RunState(plan, folder)
    if options.json:
        print(json.dumps(_plan_page.as_json(plan, state), indent=1))
    else:
        print(_plan_page.text(plan, state))
    return DONE
