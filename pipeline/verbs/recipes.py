"""`clipmill recipes`: lists clipmill's recipes, or prints one."""

import argparse
import re
import shutil
import textwrap
from pathlib import Path

from clipmill.pipeline.verbs import DONE
from clipmill.pipeline.verbs._options import add_json, answered

HELP = "the recipes that come with clipmill; with a name, the text of one"
EXAMPLES = """\
clipmill recipes
clipmill recipes quickstart
clipmill recipes quickstart > mine.yaml   # to start from
"""
SHOWN = {"Source": "follows", "Expects": "expects", "Measured": "measured"}
KEY = re.compile(r"# (\w+): +")


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="a recipe, to print it whole")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Prints a paragraph on each recipe, or the text of one."""
    from clipmill.pipeline.planning.recipe import RECIPES, find_recipe

    if options.name:
        print(find_recipe(options.name).read_text(encoding="utf-8"), end="")
        return DONE
    heads = {path.stem: head_of(path) for path in sorted(RECIPES.glob("*.yaml"))}
    return answered(heads, options, text)


def head_of(path: Path) -> dict[str, str]:
    """Returns a recipe's top comment by its keys, `Source` and others; "" has the first lines."""
    head, now = {"": ""}, ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if key := KEY.match(line):
            now, line = key[1], line[key.end() :]
        head[now] = f"{head.get(now, '')} {line.lstrip('# ')}".strip()
    return head


def text(heads: dict[str, dict[str, str]]) -> str:
    """Returns a paragraph a recipe: what it does, and what it follows, expects, measured."""
    width = min(120, shutil.get_terminal_size().columns)
    lines = []
    for name, head in heads.items():
        lines += textwrap.wrap(f"{name}: {head['']}", width, subsequent_indent="  ")
        for key, word in SHOWN.items():
            lines.append(f"  {word:<9} {textwrap.shorten(head[key], width - 12, placeholder=' …')}")
        lines.append("")
    return "\n".join(
        [*lines, "clipmill recipes NAME prints one: > mine.yaml is a start of your own"]
    )
