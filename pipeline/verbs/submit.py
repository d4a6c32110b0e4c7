"""`clipmill submit`: runs a recipe on a Ray cluster; follows, asks after and stops it from here."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from clipmill.pipeline.verbs import DONE
from clipmill.pipeline.verbs._options import add_recipe, add_retry, check_workers, planned
from clipmill.pipeline.verbs._signals import exit_code

if TYPE_CHECKING:
    from clipmill.pipeline.submit import Job

HELP = "run a recipe on a Ray cluster, and follow it from here"
EXAMPLES = """\
clipmill submit mine.yaml --address http://head:8265 --out s3://bucket/run
clipmill submit mine.yaml --address http://head:8265 --out s3://a/r --no-wait
clipmill submit --logs --address http://head:8265 --out s3://a/r
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    add_recipe(parser, nargs="?")
    parser.add_argument(
        "--address", metavar="URL", required=True, help="dashboard of the cluster: http://HOST:8265"
    )
    parser.add_argument(
        "--out", metavar="URI", required=True, help="run folder, as the cluster names it"
    )
    add_retry(parser)
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="workers of one resource profile, at most (default: as the cluster allows)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be sent, and send nothing"
    )
    parser.add_argument(
        "--install",
        action="store_true",
        help="have Ray install what the recipe's stages need, for this job: by pip, on each machine"
        " that works; without it the cluster has clipmill",
    )
    parser.add_argument("--no-wait", action="store_true", help="return when the job is sent")
    sent = parser.add_mutually_exclusive_group()
    sent.add_argument(
        "--status", action="store_true", help="without RECIPE: print how the job of --out is"
    )
    sent.add_argument("--logs", action="store_true", help="follow the job of --out to its end")
    sent.add_argument("--stop", action="store_true", help="stop the job of --out")


def run(options: argparse.Namespace) -> int:
    """Lists the files, submits the job, prints its log to the end; returns its exit code."""
    asks = options.status or options.logs or options.stop
    if asks == (options.recipe is not None):
        options.parser.error("RECIPE, or one of --status, --logs and --stop: not both, not none")
    if asks:
        return _ask(options)
    plan = planned(options)
    from clipmill.pipeline.planning.plan import check_retry

    check_retry(plan, options.retry)
    check_workers(options.workers)
    from clipmill.pipeline.submit import check_keys, contents, listed, requirements, send

    check_keys(plan, options.out)
    sent = contents(Path(plan.recipe.path))
    said = sys.stdout if options.dry_run else sys.stderr
    print(listed(sent), file=said)
    if options.install:
        print("pip installs there:", *requirements(plan, options.out), sep="\n  ", file=said)
    if options.dry_run:
        return DONE
    job = send(
        plan,
        sent,
        address=options.address,
        out=options.out,
        until=options.until,
        retry=options.retry,
        keep_going=options.keep_going,
        workers=options.workers,
        install=options.install,
    )
    print(f"{job}\n{job.how_to}", file=sys.stderr)
    return DONE if options.no_wait else _follow(job)


def _ask(options: argparse.Namespace) -> int:
    """Answers about a job that was sent."""
    import asyncio

    from clipmill.pipeline.submit import find, status, stop

    job = asyncio.run(find(options.address, options.out))
    return status(job) if options.status else stop(job) if options.stop else _follow(job)


def _follow(job: "Job") -> int:
    import asyncio

    from clipmill.pipeline.submit import follow

    try:
        return asyncio.run(follow(job))
    except KeyboardInterrupt as stop:
        print(f"\nnot followed any more; the job goes on\n{job.how_to}", file=sys.stderr)
        return exit_code(stop)
