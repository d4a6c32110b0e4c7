"""`clipmill stages`: lists the stages, or prints all about one."""

import argparse
import dataclasses
import json
import shutil
import textwrap
from pathlib import Path

from clipmill.pipeline.errors import RecipeError, did_you_mean
from clipmill.pipeline.verbs import DONE, FAILED
from clipmill.pipeline.verbs._options import add_json, add_stages

HELP = "the stages of a recipe; with a name, its settings and an example"
EXAMPLES = """\
clipmill stages
clipmill stages ingest   # those of one kind
clipmill stages download.images
clipmill stages --check score.mine   # a stage of your own, in seconds
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="a stage, or a kind of stages")
    parser.add_argument(
        "--check",
        action="store_true",
        help="run the stage on made-up rows, and say whether it keeps what the engine relies on",
    )
    add_stages(parser)
    add_json(parser)
    parser.add_argument("--docs", type=Path, metavar="DIR", help=argparse.SUPPRESS)  # `make docs`


def run(options: argparse.Namespace) -> int:
    """Prints a line a stage, or the page of one."""
    from clipmill.pipeline.planning.settings import known_uses

    if options.docs:
        from clipmill.pipeline.verbs._stage_pages import pages

        (options.docs / "stages").mkdir(parents=True, exist_ok=True)
        for name, text in pages().items():
            (options.docs / name).write_text(text, encoding="utf-8")
        return DONE
    known = known_uses()
    kinds = dict.fromkeys(uses.partition(".")[0] for uses in known)
    if options.check and options.name in (None, *kinds):
        do = "name one: clipmill stages --check kind.name"
        raise RecipeError("--check wants a stage", "clipmill stages --check", do)
    if options.name in known:
        if options.check:
            return _check(options.name, options.json)
        print(_page(options.name, options.json))
        return DONE
    if options.name is not None and options.name not in kinds:
        found, do = f"no stage '{options.name}'", did_you_mean(options.name, [*known, *kinds])
        raise RecipeError(found, "clipmill stages", f"{do}  clipmill stages lists all")
    print(
        _list(
            [uses for uses in known if options.name in (None, uses.partition(".")[0])], options.json
        )
    )
    return DONE


def _check(name: str, as_json: bool) -> int:
    """Prints every check of a stage; returns FAILED if one is bad."""
    from clipmill.pipeline.contract import check

    checks = check(name)
    if as_json:
        print(json.dumps([dataclasses.asdict(result) for result in checks], indent=1))
    marks = {"good": "ok", "note": "note", "bad": "BAD"}
    for result in () if as_json else checks:
        print(
            f"{marks[result.verdict]:<6}{result.name}{f': {result.found}' if result.found else ''}"
        )
        if result.verdict == "bad":
            print(f"      where: {result.where}\n      do:    {result.do}")
    return FAILED if any(result.verdict == "bad" for result in checks) else DONE


def _list(known: list[str], as_json: bool) -> str:
    from clipmill.pipeline.planning.described import title_of
    from clipmill.pipeline.planning.settings import file_of

    titles = {uses: title_of(file_of(uses)) for uses in known}
    if as_json:
        return json.dumps(
            [{"uses": uses, "title": title} for uses, title in titles.items()], indent=1
        )
    width = max(map(len, titles))
    columns = min(120, shutil.get_terminal_size().columns)
    lines: list[str] = []
    kind = ""
    for uses, title in titles.items():
        if kind != (kind := uses.partition(".")[0]):
            lines += [""] if lines else []
        lines += textwrap.wrap(
            f"{uses:<{width}}  {title}", columns, subsequent_indent=" " * (width + 2)
        )
    return "\n".join(
        [*lines, "", "clipmill stages NAME shows one: its settings, columns, an example"]
    )


def _page(uses: str, as_json: bool) -> str:
    from clipmill.pipeline.planning.described import described, recipe_of
    from clipmill.pipeline.verbs._stage_pages import text

    stage, recipe = described(uses), recipe_of(uses)
    if as_json:
        return json.dumps(dataclasses.asdict(stage) | {"recipe": recipe}, indent=1)
    return text(stage, recipe)
