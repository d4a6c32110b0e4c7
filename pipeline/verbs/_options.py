"""Arguments that several verbs share, and their meaning: a plan, a run, an executor."""

import argparse
import contextlib
import json
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmill.metadata.keys import without_keys
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.extras import importing
from clipmill.pipeline.verbs import DONE
from clipmill.pipeline.verbs._signals import stopped_by_signals

if TYPE_CHECKING:
    from clipmill.pipeline.executors import Executor
    from clipmill.pipeline.planning.plan import Plan
    from clipmill.pipeline.run_folder.state import RunState


def beside(out: str, suffix: str) -> Path:
    """Returns a file beside a run folder, of its name and `suffix`; here if the run is remote."""
    if "://" in out:
        return Path(Path(out.partition("?")[0]).name + suffix)
    path = Path(out)
    path = path if path.name not in ("", "..") else path.resolve()
    return path.with_name(path.name + suffix)


def add_several(parser: "argparse._ActionsContainer", option: str, **keys: Any) -> None:
    """Adds an option that may be repeated; its values are a list."""
    parser.add_argument(option, action="append", default=[], **keys)


def add_kind(kinds: Any, name: str, text: str) -> argparse.ArgumentParser:
    """Adds a parser below a verb's own; `text` is its help and its description."""
    parser: argparse.ArgumentParser = kinds.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}."
    )
    return parser


def names(text: str) -> tuple[str, ...]:
    """Splits names at commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def add_stages(parser: argparse.ArgumentParser) -> None:
    """Adds `--stages DIR`, which the command line passes to `own_code`."""
    add_several(
        parser,
        "--stages",
        dest="own_stages",
        metavar="DIR",
        help="a folder of your own stages (default: `stages/` beside the recipe); may be repeated",
    )


def add_recipe(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    """Adds `RECIPE`, `--set`, `--until`, read by `planned`, and `--stages`."""
    parser.add_argument(
        "recipe",
        nargs=nargs,
        help="a recipe of `clipmill recipes`, or a file of your own: `mine.yaml`",
    )
    add_several(
        parser,
        "--set",
        dest="overrides",
        metavar="STAGE.KEY=VALUE",
        help="another value for one key of the recipe, as in pool.path=a.csv; may be repeated."
        " `clipmill stages NAME` shows the keys of a stage",
    )
    parser.add_argument("--until", metavar="STAGE", help="run only this stage and those it needs")
    add_stages(parser)


def planned(options: argparse.Namespace) -> "Plan":
    """Returns the plan of the recipe named in the options."""
    with importing():
        from clipmill.pipeline.planning.plan import make_plan
        from clipmill.pipeline.planning.recipe import load_recipe

        return make_plan(load_recipe(options.recipe, options.overrides), options.until)


def add_retry(parser: argparse.ArgumentParser) -> None:
    """Adds `--retry REASON`, see `planning.plan.check_retry`, and `--keep-going`."""
    add_several(
        parser,
        "--retry",
        metavar="REASON",
        help="try rows again that failed for this reason (`timeout`), or `crashed` shards",
    )
    parser.add_argument(
        "--keep-going",
        action="store_true",
        help="go on where nearly all rows of a stage's first shards fail for one reason",
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    """Adds `--run URI`, read by `clipmill.pipeline.run_folder.state.latest`, and `--stages`."""
    parser.add_argument("--run", required=True, metavar="URI", help="run folder: a path or s3://…")
    add_stages(parser)


def add_show_unsafe(parser: argparse.ArgumentParser) -> None:
    """Adds `--show-unsafe`, read by `opened`."""
    parser.add_argument(
        "--show-unsafe",
        action="store_true",
        help="do not blur the pictures that a stage scored as unsafe",
    )


def add_variant(parser: argparse.ArgumentParser) -> None:
    """Adds `--run URI`, `--stages` and `--variant N`, read by `opened`."""
    add_run(parser)
    parser.add_argument(
        "--variant",
        type=int,
        metavar="N",
        help="an earlier recipe of the folder, by its number in `clipmill diff`",
    )


def opened(options: argparse.Namespace) -> "RunState":
    """Opens the run folder of `--run` with its last recipe, or that of `--variant`."""
    from clipmill.pipeline.run_folder.state import latest

    state = latest(options.run, options.variant)
    state.show_unsafe = getattr(options, "show_unsafe", False)
    return state


def run_command(options: argparse.Namespace, until: str | None) -> str:
    """Returns the `clipmill run` of the options' recipe, as words of a shell."""
    words = ["clipmill", "run", options.recipe]
    words += [word for text in options.overrides for word in ("--set", without_keys(text))]
    words += ["--until", until] if until else []
    words += [word for folder in options.own_stages for word in ("--stages", folder)]
    return shlex.join([*words, "--out", options.out or "run"])


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds `--json`, read by `answered`."""
    parser.add_argument("--json", action="store_true", help="print JSON, for a program")


def answered(answer: Any, options: argparse.Namespace, text: Callable[[Any], str]) -> int:
    """Prints an answer as text, or as JSON; returns DONE."""
    from clipmill.pipeline.ledger.answer import as_json

    print(json.dumps(as_json(answer), indent=1) if options.json else text(answer))
    return DONE


def add_executor(parser: argparse.ArgumentParser) -> None:
    """Adds `--executor`, `--address`, `--workers`, read by `executor`."""
    parser.add_argument(
        "--executor",
        choices=("local", "ray"),
        default="local",
        help="where the work runs (default: %(default)s)",
    )
    parser.add_argument(
        "--address", metavar="A", help="Ray cluster, HOST:6379 or auto (default: a local Ray)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes (default: as CPUs and memory allow); 0: all in this one, for a debugger",
    )


def fork_workers(options: argparse.Namespace) -> None:
    """Forks local workers, before anything starts a thread, with what they would import."""
    if options.executor != "local" or options.workers == 0:
        return
    # Arrow's second allocator, which nothing here uses, starts a thread.
    os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")
    # Zeroing 2 MB for a kB is a twentieth of a run.
    os.environ.setdefault("MIMALLOC_ALLOW_THP", "0")
    with importing():
        from clipmill.pipeline.engine import chain_run, run  # noqa: F401
        from clipmill.pipeline.executors.local_worker import fork_early

    fork_early(options.workers or os.cpu_count() or 1)


@contextlib.contextmanager
def executor(options: argparse.Namespace) -> Iterator["Executor"]:
    """Yields the chosen executor; its workers end with the command, also if it is stopped."""
    chosen = _chosen(options)
    try:
        with stopped_by_signals():
            yield chosen
    finally:
        chosen.close()


def _chosen(options: argparse.Namespace) -> "Executor":
    check_workers(options.workers)
    if options.executor == "ray":
        from clipmill.pipeline.executors.ray import RayExecutor

        return RayExecutor(address=options.address, workers=options.workers)
    if options.address:
        raise RecipeError("--address without Ray", "the arguments", "add --executor ray")
    from clipmill.pipeline.executors.local import LocalExecutor

    return LocalExecutor(options.workers, with_main=False)


def check_workers(workers: int | None) -> None:
    """Raises RecipeError for a count below 0."""
    if workers is not None and workers < 0:
        raise RecipeError(f"--workers {workers}", "the arguments", "give 0 or more")
