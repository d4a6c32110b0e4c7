"""`clipmill plan`: checks a recipe and what it reads, and shows what would run."""

import argparse
import json

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.verbs import DONE
from clipmill.pipeline.verbs._options import add_json, add_recipe, planned, run_command

HELP = "check a recipe and show what would run"
EXAMPLES = """\
clipmill plan quickstart
clipmill plan mine.yaml --set pool.path=data.csv
clipmill plan mine.yaml --out run --probe 200   # what its captions will cost
clipmill plan mine.yaml --out run --rows 1e9 --hardware cluster.yaml
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    add_recipe(parser)
    parser.add_argument("--out", metavar="URI", help="run folder: also show what is done there")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="settings, columns and needs of each stage"
    )
    parser.add_argument(
        "--probe",
        type=int,
        metavar="ROWS",
        help="ask the models for so many rows of each stage that asks one, and say what the others"
        " will take: requests, tokens, dollars, hours; the answers stay in --out, for the run",
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="workers of the run that --probe tells of or --probe-shards starts (default: as many"
        " as fit on this machine)",
    )
    parser.add_argument(
        "--rows",
        metavar="N",
        help="say what a run over so many rows would take, by what the one in --out took: hours,"
        " GPU-hours, bytes, requests, dollars and the bottleneck",
    )
    parser.add_argument(
        "--hardware",
        metavar="FILE",
        help="where --rows would run: YAML with nodes, and cpus, memory_gb, gpus and prices of one",
    )
    parser.add_argument(
        "--probe-shards",
        type=int,
        metavar="K",
        help="first run the first K shards of each root into --out; a later run goes on from them",
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Prints the plan and what it reads; with `--out` also what is done.

    With `--probe` asks models for some rows instead, and predicts the cost of the others; with
    `--rows` forecasts a larger run.
    """
    plan = planned(options)
    if options.rows or options.hardware or options.probe_shards is not None:
        if options.probe is not None:
            raise RecipeError("--probe beside a forecast", "the arguments", "ask for them apart")
        from clipmill.pipeline.verbs import _forecast

        return _forecast.run(plan, options)
    if options.probe is not None or options.workers is not None:
        from clipmill.pipeline.verbs import _probe

        return _probe.run(plan, options)
    from clipmill.metadata.storage import Storage
    from clipmill.pipeline.planning.looks import look, refuse_missing
    from clipmill.pipeline.run_folder.origin import refuse_another_pool
    from clipmill.pipeline.run_folder.state import RunState
    from clipmill.pipeline.verbs import _plan_page

    state = folder = None
    if options.out:
        folder = Storage(options.out)
        refuse_another_pool(plan, folder)
        state = RunState(plan, folder)
    seen = look(plan, folder)
    if options.json:
        print(json.dumps(_plan_page.as_json(plan, state, seen), indent=1))
    elif options.verbose:
        print(_plan_page.text(plan, state, seen))
    else:
        print(_plan_page.screen(plan, state, seen, run_command(options, options.until)))
    refuse_missing(plan, seen)
    return DONE
