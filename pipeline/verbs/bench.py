"""`clipmill bench`: trains on several subsets and compares them, with the noise of chance."""

import argparse
import math
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.terminal import aligned
from clipmill.pipeline.verbs import DONE, FAILED
from clipmill.pipeline.verbs import run as runs
from clipmill.pipeline.verbs._options import (
    add_executor,
    add_json,
    add_several,
    add_stages,
    answered,
    beside,
    executor,
)

if TYPE_CHECKING:
    from clipmill.metadata.storage import Storage
    from clipmill.pipeline.bench.board import Board
    from clipmill.pipeline.bench.prepare import Prepared

PAGE = "leaderboard"
HELP = "compare subsets: train on each, evaluate, say what is luck"
EXAMPLES = """\
clipmill bench best=run:subset --tasks pool/eval --out bench
clipmill bench --out bench --add text=other-run:long
clipmill bench --out bench --power 2
clipmill bench all=run:union --by source --tasks pool/eval --out by-source
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "arms", nargs="*", metavar="NAME=RUN:STAGE", help="an arm: the rows that a stage keeps"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the bench's folder, or a URI")
    parser.add_argument("--tasks", metavar="DIR", help="folder of evaluation tasks")
    parser.add_argument(
        "--judge",
        dest="judges",
        metavar="NAMES",
        help="zero_shot,probe adds classifiers of the frozen embeddings (default: zero_shot)",
    )
    parser.add_argument(
        "--hold-out",
        metavar="STAGE",
        help="train on rows that this select drops, which nothing behind an arm may learn from",
    )
    parser.add_argument(
        "--hold-in", metavar="STAGE", help="train on rows alone that this select keeps"
    )
    parser.add_argument("--scale", metavar="NAME", help="of every training (default: nano)")
    parser.add_argument(
        "--seeds", type=int, metavar="N", help="trainings of each arm (default: 5, or as before)"
    )
    rows = parser.add_argument_group("more arms; raw, and as many rows by chance, are always there")
    rows.add_argument(
        "--add",
        action="extend",
        nargs="+",
        default=[],
        dest="added",
        metavar="NAME=RUN:STAGE",
        help="arms beside those that the bench in DIR has",
    )
    add_several(
        rows,
        "--import",
        dest="lists",
        metavar="NAME=FILE",
        help="rows that a list names: DataComp's .npy, or text of one uid a line",
    )
    rows.add_argument(
        "--by",
        metavar="COLUMN",
        help="the arm's rows of each value of a column, each two mixed, and a mixture with weights"
        " learnt on half of the items; `source:web,books` names the values",
    )
    add_several(
        rows,
        "--mix",
        dest="mixes",
        metavar="NAME=A:0.7,B:0.3",
        help="rows of other arms, repeated so that each has its share of an epoch",
    )
    add_several(
        rows,
        "--arm",
        dest="again",
        metavar="NAME=ARM,KEY=VALUE,…",
        help="an arm's rows, trained with other settings: fast=best,learning_rate=4e-3",
    )
    rows.add_argument(
        "--trusted", metavar="RUN:STAGE", help="the arm `trusted`, which may be of another pool"
    )
    rows.add_argument("--oracle", metavar="FILE", help="the arm `oracle`: a list, as of --import")
    add_several(
        parser,
        "--set",
        dest="sets",
        metavar="KEY=VALUE",
        help="a setting of every training; `clipmill stages train.clip` shows them",
    )
    parser.add_argument(
        "--estimate",
        action="store_true",
        help="make what the trainings read, say what they will take, and stop",
    )
    parser.add_argument(
        "--power",
        type=float,
        nargs="*",
        metavar="POINTS",
        help="train nothing: by the trainings in DIR, the smallest differences that more seeds"
        " see, and the seeds that a difference of so many points needs",
    )
    parser.add_argument(
        "--usd-per-hour", type=float, metavar="X", help="of all workers: the estimate says the cost"
    )
    add_executor(parser)
    add_several(
        parser,
        "--retry",
        choices=("crashed",),
        help="try trainings again that ended their worker three times",
    )
    add_stages(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Prepares and runs what is missing, and prints the leaderboard."""
    _check(options)
    from clipmill.metadata.storage import Storage
    from clipmill.pipeline.bench import tables
    from clipmill.pipeline.bench.board import board
    from clipmill.pipeline.bench.by import by_column, split, with_learnt
    from clipmill.pipeline.bench.estimate import estimated
    from clipmill.pipeline.bench.power import power_of, stored_results
    from clipmill.pipeline.bench.power import text as power_text
    from clipmill.pipeline.bench.prepare import SPEC, prepared
    from clipmill.pipeline.bench.spec import Arguments, Bench, bench_of
    from clipmill.pipeline.engine.run import run_plan
    from clipmill.pipeline.planning.looks import look, refuse_missing
    from clipmill.pipeline.progress import watcher
    from clipmill.pipeline.run_folder.sessions import session

    out = Storage(options.out)
    before = out.read_json(SPEC, Bench)
    if before is None and out.has(SPEC):
        do = "delete it and name every arm again: what is trained is found done"
        raise RecipeError("not what a bench stores", f"{out}/{SPEC}", do)
    if before is None and options.added:
        problem = "no bench there to add to"
        raise RecipeError(problem, str(out), "leave --add out: name arms as NAME=RUN:STAGE")
    given = {field.name: getattr(options, field.name) for field in fields(Arguments)}
    arguments = Arguments(**given | {"arms": (*options.arms, *options.added)})
    bench = bench_of(arguments, before, str(out))
    bench = split(bench, options.by) if options.by else bench
    if options.power is not None and bench != before:
        problem = "--power with other arms or seeds than are stored"
        raise RecipeError(problem, str(out), "write `clipmill bench --out DIR --power` alone")
    ready = None
    with executor(options) as workers:
        while ready is None or bench != ready.bench:
            with watcher() as watch, _shown_before(out, bench == before):
                ready = prepared(bench, out, workers, watch)
            if options.power is not None:
                points = [points / 100 for points in options.power]
                return answered(power_of(stored_results(ready, out), points), options, power_text)
            stream = sys.stderr if options.json else sys.stdout
            print(arms_page(ready), file=stream)
            places = getattr(workers, "workers", None)
            cost = estimated(ready, out, places, options.usd_per_hour)
            print(f"\n{cost.words()}\n", file=stream, flush=True)
            if options.estimate:
                print(_next(options.out, out), file=stream)
                return answered(cost.figures(), options, "".format) if options.json else DONE
            refuse_missing(ready.plan, look(ready.plan, out))
            with watcher() as watch, session(out, ready.plan.recipe.name):
                outcome = run_plan(ready.plan, out, workers, watch, tuple(options.retry))
            if not outcome.complete:
                print(runs.text(outcome), file=stream)
                do = f"to leave an arm out, delete {out}/{SPEC} and name the others again"
                print(f"{do}: what is trained is found done", file=stream)
                return FAILED
            bench = with_learnt(ready, outcome.state)
    ranked = by_column(board(ready, outcome.state), ready, outcome.state)
    _put(ranked, out)
    return answered(ranked, options, lambda ranked: f"{tables.text(ranked)}\n\n{out}/{PAGE}.html")


def _check(options: argparse.Namespace) -> None:
    """Raises RecipeError for numbers that no price or difference has, and for two answers."""
    points = [("--power", number) for number in options.power or ()]
    for flag, number in [("--usd-per-hour", options.usd_per_hour), *points]:
        if number is not None and not 0 < number < math.inf:
            raise RecipeError(f"{flag} {number:g}", "the arguments", "give a number above 0")
    if options.power is not None and options.estimate:
        do = "ask for them apart: both train nothing"
        raise RecipeError("--power and --estimate together", "the arguments", do)


@contextmanager
def _shown_before(out: "Storage", is_same: bool) -> Iterator[None]:
    """Adds to an error where the leaderboard is, if only that is asked for and it is there."""
    try:
        yield
    except RecipeError as error:
        if not is_same or not out.has(f"{PAGE}.md"):
            raise
        found, where, do = error.args
        raise RecipeError(found, where, f"{do}; the last leaderboard is {out}/{PAGE}.md") from None


def _put(ranked: "Board", out: "Storage") -> None:
    """Stores the leaderboard as Parquet, Markdown and HTML, and each model's scores as CSV."""
    import pyarrow.csv
    import pyarrow.parquet as pq

    from clipmill.pipeline.bench.tables import SCORES, markdown, scores, table
    from clipmill.pipeline.report.leaderboard import leaderboard

    with out.scratch(f"{PAGE}.parquet") as path:
        pq.write_table(table(ranked), path)
        out.commit(path, f"{PAGE}.parquet")
    with out.scratch(SCORES) as path:
        pyarrow.csv.write_csv(scores(ranked), path)
        out.commit(path, SCORES)
    title = out.path.rstrip("/").rpartition("/")[2]
    pages = {"md": markdown(ranked), "html": leaderboard(ranked, title)}
    for suffix, page in pages.items():
        out.put(f"{PAGE}.{suffix}", page.encode(), point=PAGE)


def _next(uri: str, out: "Storage") -> str:
    """Returns the commands that run the bench: here, or on a cluster from a local recipe."""
    from clipmill.pipeline.bench.recipe import FILE

    recipe = Path(out.path, FILE)
    if not out.is_local:
        recipe = beside(uri, ".yaml")
        recipe.write_bytes(out.read(FILE))
    place = shlex.quote(str(out))
    submit = f"clipmill submit {shlex.quote(str(recipe))} --address http://HEAD:8265 --out {place}"
    return f"clipmill bench --out {place}\n{submit}"


def arms_page(bench: "Prepared") -> str:
    """Returns a table of the arms: rows, and what they are."""
    lines = []
    for name, arm in bench.arms.items():
        rows = bench.rows_of(name)
        settings = "".join(f", {key} {value}" for key, value in arm.settings.items())
        lacking = f"; {rows.lacking:,} more lack one or the other" if rows.lacking else ""
        lacking += f"; uids of no row of the pool: {rows.unknown:,}" if rows.unknown else ""
        lines.append((name, f"{rows.rows:,} rows", f"{bench.what(name)}{settings}{lacking}"))
    return "\n".join(aligned(lines, {1}))
