"""`clipmill submit`: runs a recipe on a Ray cluster, and follows it from here."""

import argparse
import sys
from pathlib import Path

from clipmill.pipeline.verbs import DONE
from clipmill.pipeline.verbs._options import add_recipe, add_retry, check_workers, planned
from clipmill.pipeline.verbs._signals import exit_code

HELP = "run a recipe on a Ray cluster, and follow it from here"
EXAMPLES = """\
clipmill submit mine.yaml --address http://head:8265 --out s3://bucket/run
clipmill submit mine.yaml --address http://head:8265 --out s3://a/r --no-wait
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    add_recipe(parser)
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
    parser.add_argument("--no-wait", action="store_true", help="return when the job is sent")


def run(options: argparse.Namespace) -> int:
    """Lists the files, submits the job, prints its log to the end; returns its exit code."""
    plan = planned(options)
    from clipmill.pipeline.planning.retries import check_retry

    check_retry(plan, options.retry)
    check_workers(options.workers)
    from clipmill.pipeline.submit import check_keys, contents, follow, listed, send

    check_keys(plan, options.out)
    sent = contents(Path(plan.recipe.path))
    print(listed(sent), file=sys.stdout if options.dry_run else sys.stderr)
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
    )
    print(f"{job}\n{job.how_to}", file=sys.stderr)
    if options.no_wait:
        return DONE
    try:
        return follow(job)
    except KeyboardInterrupt as stop:
        print(f"\nnot followed any more; the job goes on\n{job.how_to}", file=sys.stderr)
        return exit_code(stop)
