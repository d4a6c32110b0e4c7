"""What a stage is and takes, for a reader: read from its declarations, its docstring, its comments.

What a setting means stands once, in the stage's file: as the comment beside the field, or above it.
"""

import ast
import dataclasses
import inspect
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass
from types import UnionType
from typing import Any

import msgspec
import msgspec.inspect as types
import yaml

from clipmill.metadata.fingerprint import plain
from clipmill.metadata.schema import UID, Column
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.own_code import File
from clipmill.pipeline.planning.bindings import columns_of
from clipmill.pipeline.planning.comments import comments_of
from clipmill.pipeline.planning.settings import stage_class
from clipmill.pipeline.planning.takes import range_of, setting_types
from clipmill.pipeline.stage import (
    DatasetStage,
    Resources,
    RowStage,
    Stage,
    edges_taken,
    optional_columns,
    settings_fields,
)

SECTIONS = ("Source", "Error", "Example")  # of a stage's docstring; before them, what it gives
AFTER = "after"  # of an Example: what the stages before it use, the others are its settings
WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false"}
PLACEHOLDERS = {int: 1, float: 1.0, bool: True}  # of settings without default or example


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A key of the recipe; `top.column` is the key `column` inside of `top`."""

    name: str
    type: str
    range: str  # empty where any value of the type may stand
    required: bool
    default: Any  # None where there is none, or where it is null
    meaning: str
    only_how: bool  # where or how fast, never what: results stay good when it changes


@dataclass(frozen=True, kw_only=True)
class Described:
    """A stage in words. `reads` and `writes` are those with the settings of `example`."""

    uses: str
    file: str
    title: str
    gives: str
    source: str
    error: str
    version: int
    determinism: str
    kind: str
    takes: tuple[str, ...]  # of these each: rows, data, model
    leaves: tuple[str, ...]
    settings: tuple[Setting, ...]
    reads: tuple[dict[str, str], ...]  # name, type, unit, doc
    optional_reads: tuple[dict[str, str], ...]
    writes: tuple[dict[str, str], ...]
    reasons: tuple[str, ...]
    transient: tuple[str, ...]  # of these, those that `--retry` tries again
    advice: Mapping[str, str]  # of some reasons, what to do where most rows have it
    resources: Resources
    example: Mapping[str, Any]  # settings that show it at work


def described(uses: str) -> Described:
    """All that a stage says about itself; RecipeError where it cannot be read."""
    cls = stage_class(uses, f"stages/{uses.replace('.', '/')}.py")
    module = inspect.getmodule(cls)
    said = _sections(inspect.getdoc(cls) or "")
    stage = sample(cls)
    return Described(
        uses=uses,
        file=inspect.getfile(cls),
        title=(inspect.getdoc(module) or "").partition("\n")[0],
        gives=said[""],
        source=said["Source"],
        error=said["Error"],
        version=cls.version,
        determinism=cls.determinism,
        kind="row stage" if issubclass(cls, RowStage) else "dataset stage",
        takes=tuple(" or ".join(one) if isinstance(one, tuple) else one for one in cls.takes),
        leaves=cls.gives,
        settings=tuple(_settings(cls)),
        reads=tuple(map(_column, stage.reads)),
        optional_reads=tuple(map(_column, optional_columns(stage))),
        writes=tuple(_column(column) for column in columns_of(stage) if column is not UID),
        reasons=stage.reasons,
        transient=stage.transient,
        advice=dict(stage.advice),
        resources=stage.resources,
        example=example_of(cls),
    )


def example_of(cls: type[Stage]) -> Mapping[str, Any]:
    """The settings under `Example:` in its docstring, which show it at work."""
    return {key: value for key, value in _example(cls).items() if key != AFTER}


def recipe_of(uses: str) -> str:
    """The YAML of a recipe that ends in this stage, after those that its example names."""
    lines = ["stages:"]
    stages: dict[str, Stage] = {}
    for one in (*_example(stage_class(uses, uses)).get(AFTER, ()), uses):
        cls = stage_class(one, f"`Example:` of {uses}")
        stage, (kind, name) = sample(cls), one.split(".")
        if stage.takes == ():
            name = "more" if "pool" in stages else "pool"
        elif name in stages:
            name = f"{kind}_{name}"
        rows, data = (
            [other for other, its in stages.items() if edge in its.gives]
            for edge in ("rows", "data")
        )
        keys: dict[str, Any] = {"uses": one}
        if isinstance(stage, DatasetStage) and stage.joins_roots:
            keys["from"] = rows
        elif "rows" in edges_taken(stage):
            keys["from"] = rows[-1] if rows else "pool"
        elif "data" in stage.takes:
            keys["data"] = data[-1] if data else "parquet"
        keys |= example_of(cls)
        flow = yaml.safe_dump(keys, default_flow_style=True, sort_keys=False, width=10_000)
        lines.append(f"  {name}: {flow.strip()}")
        stages[name] = stage
    return "\n".join(lines)


def _example(cls: type[Stage]) -> dict[str, Any]:
    text = _sections(inspect.getdoc(cls) or "")["Example"]
    found = yaml.safe_load(text) if text else {}
    return found if isinstance(found, dict) else {}


def sample(cls: type[Stage]) -> Stage:
    """The stage with the settings of its example; RecipeError where it is not content with them."""
    hints = typing.get_type_hints(cls)
    needed = [one.name for one in settings_fields(cls) if _default(one) is MISSING]
    given = {name: PLACEHOLDERS.get(hints[name], name) for name in needed}
    try:
        made: Stage = msgspec.convert({**given, **example_of(cls)}, cls)
        return made
    except (msgspec.ValidationError, ValueError) as error:
        raise RecipeError(
            f"the stage cannot be shown without settings: {error}",
            f"{inspect.getfile(cls)}, docstring of {cls.__name__}",
            "write what it needs there, in a line, as in Example: {path: data}",
        ) from None


def title_of(file: File) -> str:
    """The first line of a stage's file, which is not imported."""
    try:
        tree = ast.parse(file.read())
    except (SyntaxError, ValueError):
        return "cannot be read: mend the file"
    return (ast.get_docstring(tree) or "").partition("\n")[0]


def _sections(docstring: str) -> dict[str, str]:
    """Its paragraphs by the word that begins them, a line each; under "" those before the first."""
    said = {"": "", **dict.fromkeys(SECTIONS, "")}
    now = ""
    for line in docstring.splitlines():
        word, colon, rest = line.partition(":")
        if colon and word in SECTIONS:
            now, line = word, rest
        said[now] += " " + line.strip() if line.strip() else "\n\n"
    return {name: "\n\n".join(_paragraphs(text)) for name, text in said.items()}


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in text.split("\n\n"):
        if words := " ".join(paragraph.split()):
            yield words


def _column(column: Column | str) -> dict[str, str]:
    if isinstance(column, str):
        return {"name": column, "type": "any", "unit": "", "doc": ""}
    dtype = str(column.dtype).replace("fixed_size_list<element: ", "list<")
    dtype = dtype.replace("list<item: ", "list<").replace("list<element: ", "list<")
    return {"name": column.name, "type": dtype, "unit": column.unit, "doc": column.doc}


# Settings


def _settings(cls: type[Any], above: str = "") -> Iterator[Setting]:
    """The fields in order; after one that is a mapping, the keys of the mapping."""
    hints = typing.get_type_hints(cls, include_extras=True)
    kinds, meanings = setting_types(cls), comments_of(cls)
    for field in settings_fields(cls):
        hint = hints[field.name]
        default = _default(field)
        yield Setting(
            name=f"{above}{field.name}",
            type=_type(hint),
            range=_range(kinds[field.name]),
            required=default is MISSING,
            default=None if default is MISSING else plain(default),
            meaning=meanings.get(field.name, ""),
            only_how=field.metadata.get("fingerprint") is False,
        )
        for nested in _mappings(hint):
            yield from _settings(nested, f"{above}{field.name}.")


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _parts(hint: Any) -> tuple[Any, ...]:
    """The types that a union allows; of any other type itself."""
    if typing.get_origin(hint) in (typing.Union, UnionType):
        return tuple(part for one in typing.get_args(hint) for part in _parts(one))
    return (hint,)


def _type(hint: Any) -> str:
    return " or ".join(dict.fromkeys(_word(part) for part in _parts(hint)))


def _word(hint: Any) -> str:
    """A type in words: `list of text`, `a or b`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is typing.Literal:
        return " or ".join(filter(None, (", ".join(map(str, arguments[:-1])), str(arguments[-1]))))
    if origin in (tuple, list):
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"mapping of text to {_type(arguments[1])}"
    if hint is type(None):
        return "null"
    return "mapping" if dataclasses.is_dataclass(hint) else WORDS.get(hint, str(hint))


def _range(kind: types.Type) -> str:
    """The range of a number, or that a text is not empty."""
    for part in kind.types if isinstance(kind, types.UnionType) else (kind,):
        if isinstance(part, types.IntType | types.FloatType):
            return range_of(part)
        if isinstance(part, types.StrType) and part.min_length:
            return "not empty"
    return ""


def _mappings(hint: Any) -> Iterator[type[Any]]:
    """The dataclasses that a value, or an item of it, may be; each once."""
    seen: dict[type[Any], None] = {}
    for part in _parts(hint):
        inner = typing.get_args(part) if typing.get_origin(part) in (tuple, list) else (part,)
        seen |= {
            one: None for one in inner if isinstance(one, type) and dataclasses.is_dataclass(one)
        }
    yield from seen
