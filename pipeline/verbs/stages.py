"""`clipmill stages`: lists the stages, prints all about one, or writes the pages of the site."""

import argparse
import dataclasses
import json
import shutil
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from clipmill.pipeline.errors import RecipeError, did_you_mean
from clipmill.pipeline.verbs import DONE, FAILED
from clipmill.pipeline.verbs._options import add_json, add_stages

if TYPE_CHECKING:
    from clipmill.pipeline.planning.described import Described, Setting

HELP = "the stages of a recipe; with a name, its settings and an example"
EXAMPLES = """\
clipmill stages
clipmill stages ingest   # those of one kind
clipmill stages download.images
clipmill stages --check score.mine   # a stage of your own, in seconds
"""
MARK = "<!-- made by `make docs` from the files of the stages: change those -->"


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
        (options.docs / "stages").mkdir(parents=True, exist_ok=True)
        for name, page in pages().items():
            (options.docs / name).write_text(page, encoding="utf-8")
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

    stage, recipe = described(uses), recipe_of(uses)
    if as_json:
        return json.dumps(dataclasses.asdict(stage) | {"recipe": recipe}, indent=1)
    return text(stage, recipe)


# Pages


def text(stage: "Described", recipe: str) -> str:
    """Returns a stage's page, as wide as the terminal, at most 100 columns."""
    width = min(100, shutil.get_terminal_size().columns)
    lines = [*_wrapped(f"{stage.uses}: {stage.title[:1].lower()}{stage.title[1:]}", width), ""]
    for paragraph in stage.gives.split("\n\n"):
        lines += [*_wrapped(paragraph, width), ""]
    lines.append("settings:" if stage.settings else "settings: none")
    for setting in stage.settings:
        lines.append(f"  {setting.name}  ({_kind(setting)})")
        lines += _wrapped(_meaning(setting), width, "      ")
    for title, columns in _columns(stage).items():
        lines += ["", f"{title}:"]
        for column in columns:
            unit = f", {column['unit']}" if column["unit"] else ""
            lines.append(f"  {column['name']}  ({column['type']}{unit})")
            lines += _wrapped(column["doc"], width, "      ")
    for title, paragraph in _rest(stage).items():
        first = f"{title}:  "
        lines += ["", *_wrapped(paragraph, width, " " * 4, first)]
    if stage.advice:
        lines += ["", "where most rows have one of these reasons:"]
    for reason, do in stage.advice.items():
        lines += _wrapped(do, width, "      ", f"  {reason}: ")
    if recipe:
        lines += ["", "an example:", *(f"  {line}" for line in recipe.splitlines())]
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """Returns file name to Markdown: stages.md lists clipmill's stages, stages/ has each kind."""
    from clipmill.pipeline.planning.described import described, recipe_of
    from clipmill.pipeline.planning.settings import file_of, known_uses

    by_kind: dict[str, list[Described]] = {}
    for uses in known_uses():
        if not file_of(uses).is_own:
            by_kind.setdefault(uses.partition(".")[0], []).append(described(uses))
    index = [
        "# Stages",
        "",
        MARK,
        "",
        "What a recipe may use, by kind. `clipmill stages NAME` prints a stage's settings, columns,"
        " reasons and an example; `make docs` makes a page of each kind. A stage of your own is a"
        " file: [adding a stage](adding/README.md). What each reason means stands in"
        " [troubleshooting](troubleshooting.md#reasons).",
    ]
    by_file = {}
    for kind, stages in by_kind.items():
        index += ["", f"## {kind}", "", "| stage | |", "|---|---|"]
        index += [f"| `{stage.uses}` | {_cell(stage.title)} |" for stage in stages]
        body = (_markdown(stage, recipe_of(stage.uses)) for stage in stages)
        by_file[f"stages/{kind}.md"] = "\n".join([f"# {kind}", "", MARK, "", *body])
    return {"stages.md": "\n".join([*index, ""]), **by_file}


def _markdown(stage: "Described", recipe: str) -> str:
    lines = [f"## {stage.uses}", "", stage.title, "", stage.gives, ""]
    if stage.settings:
        lines += ["| setting | type | default | |", "|---|---|---|---|"]
        lines += [
            f"| `{it.name}` | {_cell(_type(it))} | {_cell(_default(it))} | {_cell(_meaning(it))} |"
            for it in stage.settings
        ]
        lines.append("")
    for title, columns in _columns(stage).items():
        lines += [f"| {title} | type | unit | |", "|---|---|---|---|"]
        lines += [
            f"| `{it['name']}` | {_cell(it['type'])} | {_cell(it['unit'])} | {_cell(it['doc'])} |"
            for it in columns
        ]
        lines.append("")
    for title, paragraph in _rest(stage).items():
        lines += [f"**{title}**: {paragraph}", ""]
    if stage.advice:
        lines += ["| where most rows have | |", "|---|---|"]
        lines += [f"| `{reason}` | {_cell(do)} |" for reason, do in stage.advice.items()]
        lines.append("")
    return "\n".join([*lines, "```yaml", recipe, "```", ""])


def _columns(stage: "Described") -> Mapping[str, tuple[dict[str, str], ...]]:
    """Returns the columns by title; those of the example if settings decide them."""
    groups = {
        "reads": stage.reads,
        "reads where there": stage.optional_reads,
        "writes": stage.writes,
    }
    return {title: columns for title, columns in groups.items() if columns}


def _rest(stage: "Described") -> Mapping[str, str]:
    needs = stage.resources
    gpus = f", {needs.gpus:g} GPU" if needs.gpus else ""
    parts = {
        "reasons": ", ".join(stage.reasons),
        "of these --retry tries again": ", ".join(stage.transient),
        "not in the fingerprint, so that a change keeps what is stored": ", ".join(
            setting.name for setting in stage.settings if setting.only_how
        ),
        "source": stage.source,
        "error": stage.error,
        "takes": _and(stage.takes) or "nothing: rows begin here",
        "gives": _and(stage.leaves),
        "runs": f"{stage.kind}, {stage.determinism}, version {stage.version};"
        f" {needs.cpus} CPU{gpus}, {needs.memory_gb:g} GB a worker",
    }
    return {title: paragraph for title, paragraph in parts.items() if paragraph}


def _and(words: Iterable[str]) -> str:
    return " and ".join(words).replace("data", "a dataset").replace("model", "a model")


def _type(setting: "Setting") -> str:
    return f"{setting.type}, {setting.range}" if setting.range else setting.type


def _default(setting: "Setting") -> str:
    return "needed" if setting.required else json.dumps(setting.default, ensure_ascii=False)


def _kind(setting: "Setting") -> str:
    default = "needed" if setting.required else f"default: {_default(setting)}"
    return f"{_type(setting)}; {default}"


def _meaning(setting: "Setting") -> str:
    meaning = setting.meaning.rstrip(".")
    return f"{meaning[:1].upper()}{meaning[1:]}." if meaning else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _wrapped(text: str, width: int, indent: str = "", first: str | None = None) -> list[str]:
    begin = indent if first is None else first
    return textwrap.wrap(
        " ".join(text.split()),
        width,
        initial_indent=begin,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
