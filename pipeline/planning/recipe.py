"""Reads a recipe's YAML, with the line of every key for errors.

A recipe may come from a stranger: it is refused if it is larger or deeper than any honest one, or
has aliases, which can grow when read, or tags, which can act when read.
"""

import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

import yaml

from clipmill.pipeline import own_code
from clipmill.pipeline.errors import RecipeError, did_you_mean
from clipmill.pipeline.terminal import cut

RECIPES = Path(__file__).parents[1] / "recipes"
TOP_KEYS = ("seed", "stages")
NAME = re.compile("[A-Za-z][A-Za-z0-9_-]*")
KEY = re.compile(r"(?:stage '[^']*', )?key `([\w.]+)`(.*)", re.DOTALL)
MOST_BYTES, MOST_VALUES, MOST_STAGES, DEEPEST = 250_000, 10_000, 200, 20
LONGEST_NAME = 100  # of a stage: its folder's name, with a suffix, may have 255 bytes
STRING = "tag:yaml.org,2002:str"
PLAIN = "a recipe holds numbers, strings, lists and mappings only"
NO_TEXT = re.compile("[\0\ud800-\udfff]")  # not allowed in paths, or in UTF-8


class _Loader(yaml.SafeLoader):
    """A loader with YAML 1.2 scalars: `no`, `=` and `12:30` are strings, `1e-3` is a float."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # as the base class has it
        first: [
            (tag, pattern)
            for tag, pattern in resolvers
            if tag.rpartition(":")[2] not in ("bool", "int", "float", "timestamp", "value")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str, where: Callable[[int], str]) -> None:
        super().__init__(text)
        self.where = where  # line -> place in words
        self.depth = self.values = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Returns the next node; raises RecipeError for aliases, tags and too deep or long YAML."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML
        self.depth += 1
        self.values += 1
        if isinstance(event, yaml.AliasEvent):
            raise self._refused(event, f"an alias, *{event.anchor}", "write the value out")
        if event.tag is not None:
            raise self._refused(event, f"cannot read the value: it has a tag, {event.tag}", PLAIN)
        if self.depth > DEEPEST or self.values > MOST_VALUES:
            most = f"{DEEPEST} deep" if self.depth > DEEPEST else f"{MOST_VALUES:,} values"
            raise self._refused(event, f"more than {most}", "a recipe is a few stages and settings")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def value(
        self, node: yaml.Node, path: tuple[str, ...], lines: dict[tuple[str, ...], int]
    ) -> Any:
        if isinstance(node, yaml.MappingNode):
            value: dict[str, Any] = {}
            for key_node, value_node in node.value:
                key = key_node.value
                if key_node.tag != STRING:
                    what = key if isinstance(key, str) else f"a {key_node.id}"
                    raise self._refused(key_node, f"{what} as a key", "write a word, or quote it")
                if key in value:
                    raise self._refused(key_node, f"'{key}' stands twice", "keep one of the two")
                lines[(*path, key)] = key_node.start_mark.line + 1
                value[key] = self.value(value_node, (*path, key), lines)
            return value
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, path, lines) for item in node.value]
        try:
            scalar = self.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:  # such as an integer of 5,000 digits
            what = f"cannot read the value: {getattr(error, 'problem', error)}"
            raise self._refused(node, what, PLAIN) from None
        if isinstance(scalar, str) and NO_TEXT.search(scalar):
            raise self._refused(node, "a character that no text holds", "take it out")
        is_too_large = isinstance(scalar, int) and abs(scalar) >= 2**63
        is_too_large |= scalar in (inf, -inf) and "inf" not in node.value.lower()  # such as 1e400
        if scalar != scalar or is_too_large:
            raise self._refused(node, f"{node.value} as a number", "write one of at most 64 bits")
        return scalar

    def _refused(self, node: Any, found: str, do: str) -> RecipeError:
        return RecipeError(found, self.where(node.start_mark.line + 1), do)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"[-+]?(0b[01_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*)\Z"),
    list("-+0123456789"),
)
_Loader.add_constructor(  # 007 is 7, not octal
    "tag:yaml.org,2002:int",
    lambda loader, node: int(node.value, 0 if node.value.lstrip("+-")[1:2] in ("x", "b") else 10),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z"
    ),
    list("-+0123456789."),
)


@dataclass
class Recipe:
    """Stages by name, each a dict of its YAML keys, with the line of each key."""

    name: str
    path: str
    seed: int
    stages: dict[str, dict[str, Any]]
    lines: dict[tuple[str, ...], int] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    sets: dict[tuple[str, ...], str] = field(default_factory=dict)  # keys -> the `--set` of them
    # Of a recipe that ran: folders by stage, and the run's entries for stages with own code.
    folders: Mapping[str, str] = field(default_factory=dict)
    remembered: Mapping[str, Any] = field(default_factory=dict)

    def where(self, stage: str, *keys: str) -> str:
        """Returns a key's place in words: the `--set` that wrote it, else file, line and key."""
        whole = (stage, *keys)
        for path, text in reversed(self.sets.items()):
            if path == whole[: len(path)]:
                return f"--set {cut(text)}"
        for depth in range(len(keys), -1, -1):
            line = self.lines.get((stage, *keys[:depth]))
            if line is not None:
                break
        file = f"{self.path}:{line}" if line is not None else self.path
        named = f", key '{'.'.join(keys)}'" if keys else ""
        below = [text for path, text in self.sets.items() if path[: len(whole)] == whole]
        return f"{file}, stage '{stage}'{named}" + "".join(f", --set {cut(text)}" for text in below)

    def where_said(self, stage: str, where: str) -> str:
        """Adds file and line to a place that a stage's own error names: "key `top.column`"."""
        key = KEY.fullmatch(where)
        if key is None:
            return f"{self.where(stage)}: {where}"
        place = self.where(stage, *key[1].split("."))
        return place if place.startswith("--set") else place + key[2]  # a --set has the value


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads the recipe of a name (`quickstart`) or a path (`mine.yaml`), and applies `--set`."""
    path = find_recipe(name)
    if not (path.parent / "run.json").exists():  # the `stages` of a run folder hold no code
        own_code.add(path.parent / "stages")
    with path.open("rb") as file:
        return recipe_in(file.read(MOST_BYTES + 1), path, overrides)


def recipe_in(data: bytes, path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Parses a recipe from the bytes of the file at `path`.

    A stage's `path: ./photos` begins at the folder of that file, and so does `pictures`.
    """
    if len(data) > MOST_BYTES:
        raise RecipeError(f"more than {MOST_BYTES:,} bytes", str(path), "a recipe is a small file")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"not UTF-8: {error.reason}", str(path), "save it as UTF-8") from None
    lines: dict[tuple[str, ...], int] = {}
    whole = _read(text, lambda line: f"{path}:{line}", lines)
    if whole is None:
        whole = {}
    if not isinstance(whole, dict):
        found = "a list" if isinstance(whole, list) else "a value"
        raise RecipeError(
            f"the recipe is {found}, not keys and values", str(path), "write `stages:` at its top"
        )
    for key in whole:
        if key not in TOP_KEYS:
            raise RecipeError(
                found=f"unknown key '{key}'",
                where=f"{path}:{lines[(key,)]}",
                do=did_you_mean(key, TOP_KEYS, "a recipe has"),
            )
    stages = whole.get("stages")
    if not isinstance(stages, dict) or not stages:
        raise RecipeError("no stages", str(path), "write at least one stage under `stages:`")
    if len(stages) > MOST_STAGES:
        raise RecipeError(f"{len(stages):,} stages", str(path), f"a recipe has {MOST_STAGES}")
    recipe = Recipe(
        name=path.stem,
        path=str(path),
        seed=_seed(whole.get("seed", 0), path, lines),
        stages=stages,
        lines={key[1:]: line for key, line in lines.items() if key[0] == "stages"},
        overrides=tuple(overrides),
    )
    for stage, keys in stages.items():
        if not NAME.fullmatch(stage):  # it names a folder, and is part of `stage.column`
            do = "use letters, digits, _ and -, a letter first"
            raise RecipeError(f"'{stage}' as a stage's name", recipe.where(stage), do)
        if len(stage) > LONGEST_NAME:
            where = f"{path}:{recipe.lines[stage,]}"
            do = f"use {LONGEST_NAME} at most: it names a folder"
            raise RecipeError(f"a stage's name of {len(stage):,} characters", where, do)
        if not isinstance(keys, dict):
            where = recipe.where(stage)
            do = f"write `{stage}: {{uses: kind.name, from: …}}`"
            raise RecipeError(f"a stage is a mapping, found {cut(repr(keys))}", where, do)
        for key in ("path", "pictures"):
            place = keys.get(key)
            if isinstance(place, str) and place.split("/")[0] in (".", ".."):
                keys[key] = os.path.normpath(path.parent / place)
    for text in overrides:
        override(recipe, text)
    return recipe


def find_recipe(name: str) -> Path:
    """Returns the file of a recipe: ours by name, or the user's by path."""
    path, where = Path(name), "the recipe argument"
    known = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    if name in known:
        return RECIPES / f"{name}.yaml"
    init = f"clipmill init {shlex.quote(name)}"
    if path.is_dir() or "://" in name:
        do = f"{init} makes a recipe for it"
        raise RecipeError(f"'{name}' is data, not a recipe", where, do)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise RecipeError(f"no file '{name}'", where, "check the path")
        return path
    if path.exists():
        do = f"if it is data, {init} makes a recipe for it; a recipe ends in .yaml"
        raise RecipeError(f"'{name}' is no recipe, by its name", where, do)
    do = f"{did_you_mean(name, known)}  `mine.yaml` is a file of your own"
    raise RecipeError(f"no recipe '{name}'", where, do)


def _read(text: str, where: Callable[[int], str], lines: dict[tuple[str, ...], int]) -> Any:
    """Parses YAML text, None if it is empty; adds the line of every key to `lines`."""
    try:
        loader = _Loader(text, where)
        node = loader.get_single_node()
        return None if node is None else loader.value(node, (), lines)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line if mark else text.count("\n", 0, getattr(error, "position", 0))
        problem = str(getattr(error, "problem", None) or getattr(error, "reason", error))
        if problem.startswith("but "):  # goes on from "expected a single document in the stream"
            problem = f"{getattr(error, 'context', '')}, {problem}"
        raise RecipeError(
            found=f"not YAML: {problem}",
            where=where(line + 1),
            do="quote the value, or mend the file; a recipe is `seed:` and `stages:`, indented by"
            " spaces",
        ) from None


def value_of(text: str, where: str) -> Any:
    """Parses a value as in a recipe; raises RecipeError, at place `where`, if it is not valid."""
    return _read(text, lambda line: where, {})


def _seed(seed: Any, path: Path, lines: dict[tuple[str, ...], int]) -> int:
    if isinstance(seed, int) and not isinstance(seed, bool):
        return seed
    line = f":{lines[('seed',)]}" if ("seed",) in lines else ""
    raise RecipeError(f"seed is {seed!r}", f"{path}{line}", "write a whole number")


def override(recipe: Recipe, text: str) -> None:
    """Applies one `--set stage.key=value`; the value is read as YAML."""
    target, equals, value = text.partition("=")
    stage, *keys = target.split(".")
    where = f"--set {cut(text)}"
    if not equals:
        raise RecipeError("no '='", where, "write --set stage.key=value")
    if len(keys) > DEEPEST:
        raise RecipeError(f"more than {DEEPEST} deep", where, "write --set stage.key=value")
    parsed = value_of(value, where)
    if target == "seed":
        recipe.seed = _seed(parsed, Path(where), {})
        return
    if stage not in recipe.stages:
        raise RecipeError(
            found=f"no stage '{stage}'",
            where=where,
            do=did_you_mean(stage, ("seed", *recipe.stages), "the recipe has"),
        )
    if not keys:
        raise RecipeError("no key", where, f"write --set {stage}.key=value")
    settings = recipe.stages[stage]
    for key in keys[:-1]:
        below = settings.get(key)
        settings[key] = dict(below) if isinstance(below, dict) else {}
        settings = settings[key]
    settings[keys[-1]] = parsed
    recipe.sets.pop((stage, *keys), None)  # so that the latest is last in order
    recipe.sets[stage, *keys] = text
