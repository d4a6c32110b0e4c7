"""Describes a stage for its users, from its declarations, docstring and comments.

The meaning of a setting is written once, in the stage's file: in the comment beside or above it.
"""

import ast
import dataclasses
import inspect
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass
from types import UnionType
from typing import Any

import msgspec
import msgspec.inspect as types
import yaml

from clipmill.metadata.fingerprint import plain
from clipmill.metadata.schema import UID, Column
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.own_code import File, parsed
from clipmill.pipeline.planning.bindings import columns_of
from clipmill.pipeline.planning.recipe import value_of
from clipmill.pipeline.planning.settings import stage_class
from clipmill.pipeline.planning.takes import comments_of, range_of, setting_types
from clipmill.pipeline.stage import (
    DatasetStage,
    Resources,
    RowStage,
    Stage,
    edges_taken,
    optional_columns,
    settings_fields,
)

SECTIONS = ("Source", "Error", "Example")  # of a stage's docstring, after the description
AFTER = "after"  # key of an Example: the `uses` of stages before it; other keys are settings
WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false"}
PLACEHOLDERS = {int: 1, float: 1.0, bool: True}  # of settings without default or example


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A key of the recipe; `top.column` is the key `column` inside of `top`."""

    name: str
    type: str
    range: str  # empty if any value of the type is valid
    required: bool
    default: Any  # None if there is none, or if it is null
    meaning: str
    only_how: bool  # affects place or speed only: results stay good if it changes


@dataclass(frozen=True, kw_only=True)
class Described:
    """The description of a stage; `reads` and `writes` hold for the settings of `example`."""

    uses: str
    file: str
    title: str
    gives: str
    source: str
    error: str
    version: int
    determinism: str
    kind: str
    takes: tuple[str, ...]  # edges that it needs: `rows`, `model`; `rows or data` if either will do
    leaves: tuple[str, ...]
    settings: tuple[Setting, ...]
    reads: tuple[dict[str, str], ...]  # name, type, unit, doc
    optional_reads: tuple[dict[str, str], ...]
    writes: tuple[dict[str, str], ...]
    reasons: tuple[str, ...]
    transient: tuple[str, ...]  # reasons that `--retry` tries again
    advice: Mapping[str, str]  # reason -> what to do if most rows have it
    resources: Resources
    example: Mapping[str, Any]  # settings, by key


def described(uses: str) -> Described:
    """Returns the description of a stage; raises RecipeError if the stage cannot be read."""
    cls = stage_class(uses, f"stages/{uses.replace('.', '/')}.py")
    module = inspect.getmodule(cls)
    sections = _sections(inspect.getdoc(cls) or "")
    stage = sample(cls)
    return Described(
        uses=uses,
        file=inspect.getfile(cls),
        title=(inspect.getdoc(module) or "").partition("\n")[0],
        gives=sections[""],
        source=sections["Source"],
        error=sections["Error"],
        version=cls.version,
        determinism=cls.determinism,
        kind="row stage" if issubclass(cls, RowStage) else "dataset stage",
        takes=tuple(" or ".join(kind) if isinstance(kind, tuple) else kind for kind in cls.takes),
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
    """Returns the settings under `Example:` in a stage's docstring."""
    return {key: value for key, value in _example(cls).items() if key != AFTER}


def recipe_of(uses: str) -> str:
    """Returns the YAML of a recipe with the stages that the example names, then this stage.

    Each takes rows or data from the last before it that gives them; a union takes all rows.
    """
    lines = ["stages:"]
    stages: dict[str, Stage] = {}
    for used in (*_example(stage_class(uses, uses)).get(AFTER, ()), uses):
        cls = stage_class(used, f"`Example:` of {uses}")
        stage, (kind, name) = sample(cls), used.split(".")
        if stage.takes == ():
            name = "more" if "pool" in stages else "pool"  # a root
        elif name in stages:
            name = f"{kind}_{name}"
        rows = [before for before, earlier in stages.items() if "rows" in earlier.gives]
        data = [before for before, earlier in stages.items() if "data" in earlier.gives]
        keys: dict[str, Any] = {"uses": used}
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
    example = value_of(text, f"{inspect.getfile(cls)}, `Example:` of {cls.__name__}")
    return example if isinstance(example, dict) else {}


def sample(cls: type[Stage]) -> Stage:
    """Makes a stage with the settings of its example; raises RecipeError if they do not suffice."""
    hints = typing.get_type_hints(cls)
    required = [field.name for field in settings_fields(cls) if default_of(field) is MISSING]
    values = {name: PLACEHOLDERS.get(hints[name], name) for name in required}
    try:
        stage: Stage = msgspec.convert({**values, **example_of(cls)}, cls)
        return stage
    except (msgspec.ValidationError, ValueError) as error:
        raise RecipeError(
            f"the stage cannot be shown without settings: {error}",
            f"{inspect.getfile(cls)}, docstring of {cls.__name__}",
            "write what it needs there, in a line, as in Example: {path: data}",
        ) from None


def title_of(file: File) -> str:
    """Returns the first line of a stage's file without importing it."""
    try:
        tree = parsed(file.read())
    except (SyntaxError, ValueError):
        return "cannot be read: mend the file"
    return (ast.get_docstring(tree) or "").partition("\n")[0]


def _sections(docstring: str) -> dict[str, str]:
    """Splits a docstring into SECTIONS, with "" for the text before; each paragraph is one line."""
    texts = {"": "", **dict.fromkeys(SECTIONS, "")}
    section = ""
    for line in docstring.splitlines():
        word, colon, rest = line.partition(":")
        if colon and word in SECTIONS:
            section, line = word, rest
        texts[section] += " " + line.strip() if line.strip() else "\n\n"
    return {
        name: "\n\n".join(" ".join(part.split()) for part in text.split("\n\n") if part.strip())
        for name, text in texts.items()
    }


def _column(column: Column | str) -> dict[str, str]:
    if isinstance(column, str):
        return {"name": column, "type": "any", "unit": "", "doc": ""}
    dtype = str(column.dtype).replace("fixed_size_list<element: ", "list<")
    dtype = dtype.replace("list<item: ", "list<").replace("list<element: ", "list<")
    return {"name": column.name, "type": dtype, "unit": column.unit, "doc": column.doc}


# Settings


def _settings(cls: type[Any], above: str = "") -> Iterator[Setting]:
    """Yields the fields in order; the keys of a mapping follow it."""
    hints = typing.get_type_hints(cls, include_extras=True)
    kinds, meanings = setting_types(cls), comments_of(cls)
    for field in settings_fields(cls):
        hint = hints[field.name]
        default = default_of(field)
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


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Returns a setting's default; MISSING if it has none."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def _parts(hint: Any) -> tuple[Any, ...]:
    """Returns the members of a union, or the type itself."""
    if typing.get_origin(hint) in (typing.Union, UnionType):
        return tuple(part for member in typing.get_args(hint) for part in _parts(member))
    return (hint,)


def _type(hint: Any) -> str:
    return " or ".join(dict.fromkeys(_word(part) for part in _parts(hint)))


def _word(hint: Any) -> str:
    """Returns a type in words: `list of text`, `a or b`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is typing.Literal:
        *others, last = map(str, arguments)
        return f"{', '.join(others)} or {last}" if others else last
    if origin in (tuple, list):
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"mapping of text to {_type(arguments[1])}"
    if hint is type(None):
        return "null"
    return "mapping" if dataclasses.is_dataclass(hint) else WORDS.get(hint, str(hint))


def _range(kind: types.Type) -> str:
    """Returns a number's range in words, or `not empty` for a text that must not be."""
    for part in kind.types if isinstance(kind, types.UnionType) else (kind,):
        if isinstance(part, types.IntType | types.FloatType):
            return range_of(part)
        if isinstance(part, types.StrType) and part.min_length:
            return "not empty"
    return ""


def _mappings(hint: Any) -> Iterable[type[Any]]:
    """Returns the dataclasses that a value or its items may be, each once."""
    kinds: list[Any] = []
    for part in _parts(hint):
        kinds += typing.get_args(part) if typing.get_origin(part) in (tuple, list) else (part,)
    return dict.fromkeys(filter(dataclasses.is_dataclass, kinds))
