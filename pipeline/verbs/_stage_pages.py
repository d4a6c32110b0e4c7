"""Renders a stage for the terminal, and all stages as the site's Markdown."""

import json
import shutil
import textwrap
from collections.abc import Iterable, Mapping

from clipmill.pipeline.planning.described import Described, Setting, described, recipe_of
from clipmill.pipeline.planning.settings import file_of, known_uses

MARK = "<!-- made by `make docs` from the files of the stages: change those -->"


def text(stage: Described, recipe: str) -> str:
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


def _markdown(stage: Described, recipe: str) -> str:
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


def _columns(stage: Described) -> Mapping[str, tuple[dict[str, str], ...]]:
    """Returns the columns by title; those of the example if settings decide them."""
    groups = {
        "reads": stage.reads,
        "reads where there": stage.optional_reads,
        "writes": stage.writes,
    }
    return {title: columns for title, columns in groups.items() if columns}


def _rest(stage: Described) -> Mapping[str, str]:
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


def _type(setting: Setting) -> str:
    return f"{setting.type}, {setting.range}" if setting.range else setting.type


def _default(setting: Setting) -> str:
    return "needed" if setting.required else json.dumps(setting.default, ensure_ascii=False)


def _kind(setting: Setting) -> str:
    default = "needed" if setting.required else f"default: {_default(setting)}"
    return f"{_type(setting)}; {default}"


def _meaning(setting: Setting) -> str:
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
