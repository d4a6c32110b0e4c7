"""`clipmill init`: identifies data, and writes a recipe for them."""

import argparse
import os
import shlex
from pathlib import Path

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.verbs import DONE
from clipmill.pipeline.verbs._own_data import add_data, page, refuse_unusable, started

HELP = "look at data of your own, and write a recipe for them"
EXAMPLES = """\
clipmill init photos/
clipmill init shop.csv --url image_link --caption alt
clipmill init 'data/train-*.parquet' --out train.yaml
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    add_data(parser)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("mine.yaml"),
        metavar="FILE",
        help="the recipe to write (default: mine.yaml)",
    )


def run(options: argparse.Namespace) -> int:
    """Prints what the data are and writes the recipe; never overwrites a file."""
    if os.path.lexists(options.out):
        raise RecipeError(
            "a file that is there already", str(options.out), "give another name: --out FILE"
        )
    next_command = f"clipmill run {shlex.quote(str(options.out))} --out run"
    start = started(options, "init", options.out, next_command, asks=True)
    print(page(start, options.data))
    refuse_unusable(start, options.data)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("x", encoding="utf-8") as file:
        file.write(start.recipe)
    print(f"\nwrote {options.out}: read it, change what you like\nnext: {next_command}")
    return DONE
