"""`clipmill curate`: makes a training set from data in one command: init, run, report."""

import argparse
import os
import shlex
import shutil
from typing import TYPE_CHECKING

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.terminal import aligned, one_line
from clipmill.pipeline.verbs import DONE
from clipmill.pipeline.verbs import run as runs
from clipmill.pipeline.verbs._options import add_executor, add_retry, beside
from clipmill.pipeline.verbs._own_data import add_data, page, refuse_unusable, started

if TYPE_CHECKING:
    from clipmill.pipeline.engine.run import Outcome
    from clipmill.pipeline.run_folder.state import RunState

HELP = "data of your own to a training set: init, run and report in one"
EXAMPLES = """\
clipmill curate photos/ --out run
clipmill curate laion.parquet --out run --keep 0.3 --score similarity
clipmill curate photos/ --out run --keep 0.3 --trusted checked/
clipmill curate photos/ --out run --captions auto  # by a model here
"""
SHOWN = 10  # rows with their new captions


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    add_data(parser)
    parser.add_argument(
        "--out",
        required=True,
        metavar="RUN",
        help="run folder; the recipe is RUN.yaml beside it, the report RUN.html",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="STAGE.KEY=VALUE",
        help="another value for one key of the recipe, as in `run`; may be repeated",
    )
    add_executor(parser)
    add_retry(parser)


def run(options: argparse.Namespace) -> int:
    """Writes the recipe, runs it and writes the report; returns the run's exit code."""
    from clipmill.pipeline.own_data.recipe import is_untouched, path_in_yaml, signed
    from clipmill.pipeline.report.build import report
    from clipmill.pipeline.run_folder.state import latest

    recipe, page_file = beside(options.out, ".yaml"), beside(options.out, ".html")
    sets = [word for override in options.overrides for word in ("--set", override)]
    again = shlex.join(["clipmill", "run", str(recipe), "--out", options.out, *sets])
    start = started(options, "curate", recipe, again, asks=False)
    is_there = recipe.exists()
    before = recipe.read_text(encoding="utf-8", errors="replace") if is_there else None
    if before is not None and not is_untouched(before):
        raise RecipeError(
            found="a recipe that was changed by hand, or is another's",
            where=str(recipe),
            do=f"run it:  {again}\n         or give another --out",
        )
    if before is not None and not any(path_in_yaml(path) in before for path in start.paths):
        do = "give another --out, or delete that folder and its recipe"
        raise RecipeError(f"{options.out} is the run of other data", str(recipe), do)
    if before is None and os.path.lexists(page_file):
        do = "give another --out, or move it away"
        raise RecipeError("a file that is there already", str(page_file), do)
    print(page(start, options.data, options.overrides), end="\n\n", flush=True)
    if not any(override.startswith("pool.") for override in options.overrides):
        refuse_unusable(start, options.data)
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(signed(start.recipe), encoding="utf-8")
    parser = argparse.ArgumentParser()
    runs.add(parser)
    run_options = parser.parse_args([str(recipe), "--out", options.out])
    vars(run_options).update(
        {key: value for key, value in vars(options).items() if key in vars(run_options)}
    )

    def write_report(outcome: "Outcome") -> None:
        if outcome.complete:
            page_file.write_text(report(outcome.state, []), encoding="utf-8")

    try:
        code = runs.run(run_options, write_report)
    except (RecipeError, OSError):  # nothing has run: the recipe is as it was
        recipe.unlink() if before is None else recipe.write_text(before, encoding="utf-8")
        raise
    if options.captions and code == DONE:
        print("\n".join(captions_text(latest(options.out))), end="\n\n")
    print(f"recipe: {recipe}; change a line, then: {again}")
    return code


def captions_text(state: "RunState") -> list[str]:
    """Returns the first rows as lines: the caption as found beside the first one that was made."""
    from clipmill.metadata.schema import ORIGINAL, TEXT, TEXTS
    from clipmill.pipeline.ledger.rows.table import table

    kept = "best" if "best" in state.stages else "unique"
    columns = [TEXT.name, f"chosen.{TEXTS.name}"]
    rows = table(state, kept, columns, stacklevel=2).head(SHOWN).collect()
    lines = [("as found", "as made")]
    for found, texts in rows.select(columns).iter_rows():
        made = [text["text"] for text in texts or () if text["source"] != ORIGINAL]
        lines.append((one_line(found or ""), one_line(made[0]) if made else "(none passed)"))
    return aligned(lines, width=shutil.get_terminal_size((120, 24)).columns)
