"""`clipmill bench`: which subset is better, and by how much more than luck."""

import argparse
from typing import TYPE_CHECKING

from pipeline.errors import RecipeError
from pipeline.verbs import DONE
from pipeline.verbs import run as runs
from pipeline.verbs._options import add_executor, add_json, executor

if TYPE_CHECKING:
    from metadata.storage import Storage
    from pipeline.bench.prepare import Prepared

HELP = "compare subsets: train on each, evaluate, say what is luck"
EXAMPLES = """\
clipmill bench best=run:subset --tasks pool/eval --out bench
clipmill bench --out bench --add text=other-run:long
clipmill bench --out bench --seeds 8
clipmill bench --out bench --mix both=best:0.7,text:0.3
"""


def add(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    parser.add_argument(
        "arms", nargs="*", metavar="NAME=RUN:STAGE", help="an arm: the rows that a stage keeps"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the bench's folder, or a URI")
    parser.add_argument("--tasks", metavar="DIR", help="folder of evaluation tasks")
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
    rows.add_argument(
        "--import",
        action="append",
        default=[],
        dest="lists",
        metavar="NAME=FILE",
        help="rows that a list names: DataComp's .npy, or text of one uid a line",
    )
    rows.add_argument(
        "--mix",
        action="append",
        default=[],
        dest="mixes",
        metavar="NAME=A:0.7,B:0.3",
        help="rows of other arms, repeated so that each has its share of an epoch",
    )
    rows.add_argument(
        "--arm",
        action="append",
        default=[],
        dest="again",
        metavar="NAME=ARM,KEY=VALUE,…",
        help="an arm's rows, trained with other settings: fast=best,learning_rate=4e-3",
    )
    rows.add_argument(
        "--trusted", metavar="RUN:STAGE", help="the arm `trusted`, which may be of another pool"
    )
    rows.add_argument("--oracle", metavar="FILE", help="the arm `oracle`: a list, as of --import")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="sets",
        metavar="KEY=VALUE",
        help="a setting of every training; `clipmill stages train.clip` shows them",
    )
    parser.add_argument(
        "--estimate",
        action="store_true",
        help="make what the trainings read, say what they will take, and stop",
    )
    add_executor(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Makes what is missing, runs it, and prints the leaderboard."""
    from metadata.storage import Storage
    from pipeline.bench.prepare import SPEC, prepared
    from pipeline.bench.spec import Asked, Bench, bench_of
    from pipeline.progress import watcher

    out = Storage(options.out)
    before = out.read_json(SPEC, Bench)
    if before is None and options.added:
        found = "no bench there to add to"
        raise RecipeError(found, str(out), "leave --add out: name arms as NAME=RUN:STAGE")
    asked = Asked(
        arms=(*options.arms, *options.added),
        lists=options.lists,
        mixes=options.mixes,
        again=options.again,
        trusted=options.trusted,
        oracle=options.oracle,
        sets=options.sets,
        scale=options.scale,
        seeds=options.seeds,
        tasks=options.tasks,
    )
    bench = bench_of(asked, before, str(out))
    with executor(options) as workers, watcher() as watch:
        made = prepared(bench, out, workers, watch)
    print(arms_page(made), end="\n\n", flush=True)
    if options.estimate:
        return DONE
    return runs.run(_told(options, out))


def _told(options: argparse.Namespace, out: "Storage") -> argparse.Namespace:
    """The arguments of the run that the bench is."""
    from pipeline.bench.recipe import FILE

    parser = argparse.ArgumentParser()
    runs.add(parser)
    told = parser.parse_args([f"{out.path}/{FILE}", "--out", options.out])
    vars(told).update({key: value for key, value in vars(options).items() if key in vars(told)})
    return told


def arms_page(made: "Prepared") -> str:
    """The arms: rows, and what they are."""
    sources = {name: str(source) for name, source in made.bench.rows.items()}
    lines = []
    for name, arm in made.arms.items():
        rows = made.made(name)
        settings = "".join(f", {key} {value}" for key, value in arm.settings.items())
        what = sources.get(arm.rows, "every row with a picture and a caption")
        what = "as many by chance" if arm.rows.startswith("random_of_") else what
        lacking = f"; {rows.lacking:,} more lack one or the other" if rows.lacking else ""
        lines.append((name, f"{rows.rows:,}", f"{what}{settings}{lacking}"))
    width = [max(len(line[i]) for line in lines) for i in (0, 1)]
    return "\n".join(f"{a:<{width[0]}}  {b:>{width[1]}} rows  {c}" for a, b, c in lines)
