"""A recipe's YAML, with the line of every key, so that an error can point at it."""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import RecipeError

RECIPES = Path(__file__).parent / "recipes"
TOP_KEYS = ("seed", "stages")
NAME = re.compile("[A-Za-z][A-Za-z0-9_-]*")


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars: `no` is a word (a language, a resize mode), and 1e-3 is a number."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # as the base class has it
        first: [
            (tag, pattern)
            for tag, pattern in resolvers
            if tag.rpartition(":")[2] not in ("bool", "float", "timestamp")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")
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
    """Stages by name, each a dict of its YAML keys; and where each key stands."""

    name: str
    path: str
    seed: int
    stages: dict[str, dict[str, Any]]
    lines: dict[tuple[str, ...], int] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()

    def where(self, stage: str, *keys: str) -> str:
        """The place of a key in words: file, line, stage and key."""
        for depth in range(len(keys), -1, -1):
            line = self.lines.get((stage, *keys[:depth]))
            if line is not None:
                break
        at = f"{self.path}:{line}" if line is not None else self.path
        named = f", key '{'.'.join(keys)}'" if keys else ""
        return f"{at}, stage '{stage}'{named}"


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a name (`quickstart`) or a path (`mine.yaml`), with `--set` applied."""
    path = find_recipe(name)
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise RecipeError(
            found=f"not YAML: {getattr(error, 'problem', None) or error}",
            where=f"{path}:{mark.line + 1}" if mark else str(path),
            do="mend the file; a recipe is `seed:` and `stages:`, indented by spaces",
        ) from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"not UTF-8: {error.reason}", str(path), "save it as UTF-8") from None
    lines: dict[tuple[str, ...], int] = {}
    whole = _construct(root, (), lines, path) if root is not None else {}
    if not isinstance(whole, dict):
        raise RecipeError(
            f"the recipe is a {type(whole).__name__}",
            str(path),
            "write `stages:` at its top",
        )
    for key in whole:
        if key not in TOP_KEYS:
            raise RecipeError(
                found=f"unknown key '{key}'",
                where=f"{path}:{lines[(key,)]}",
                do=f"did you mean '{nearest(key, TOP_KEYS)}'?  Known: {', '.join(TOP_KEYS)}",
            )
    stages = whole.get("stages")
    if not isinstance(stages, dict) or not stages:
        raise RecipeError("no stages", str(path), "write at least one stage under `stages:`")
    recipe = Recipe(
        name=path.stem,
        path=str(path),
        seed=_seed(whole.get("seed", 0), path, lines),
        stages=stages,
        lines={key[1:]: line for key, line in lines.items() if key[0] == "stages"},
        overrides=tuple(overrides),
    )
    for stage, keys in stages.items():
        if not NAME.fullmatch(stage):  # it names a folder, and stands in `stage.column`
            raise RecipeError(
                f"'{stage}' as a stage's name",
                recipe.where(stage),
                "use letters, digits, _ and -, a letter first",
            )
        if not isinstance(keys, dict):
            raise RecipeError(
                f"a stage is a mapping, found {keys!r}",
                recipe.where(stage),
                f"write `{stage}: {{uses: kind.name, from: …}}`",
            )
    for override in overrides:
        _override(recipe, override)
    return recipe


def find_recipe(name: str) -> Path:
    """The file of a recipe, ours by name or the user's by path."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or "/" in name:
        if not path.is_file():
            raise RecipeError(f"no file '{name}'", "the recipe argument", "check the path")
        return path
    ours = RECIPES / f"{name}.yaml"
    if ours.is_file():
        return ours
    known = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    raise RecipeError(
        found=f"no recipe '{name}'",
        where="the recipe argument",
        do=f"did you mean '{nearest(name, known)}'?  Known: {', '.join(known)}; or give a path",
    )


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word most like this one; the first where none is."""
    words = list(known)
    found = difflib.get_close_matches(word, words, n=1, cutoff=0.0)
    return found[0] if found else ""


def _construct(
    node: yaml.Node,
    path: tuple[str, ...],
    lines: dict[tuple[str, ...], int],
    file: Path,
) -> Any:
    """The node's value; lines gets the line of every mapping key."""
    if isinstance(node, yaml.MappingNode):
        value: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise RecipeError(f"a {key_node.id} as a key", f"{file}:{line}", "write a word")
            if key in value:
                raise RecipeError(f"'{key}' stands twice", f"{file}:{line}", "keep one of the two")
            lines[(*path, key)] = line
            value[key] = _construct(value_node, (*path, key), lines, file)
        return value
    if isinstance(node, yaml.SequenceNode):
        return [_construct(item, path, lines, file) for item in node.value]
    try:
        return _Loader("").construct_object(node, deep=True)
    except yaml.YAMLError as error:
        line = node.start_mark.line + 1
        raise RecipeError(
            f"cannot read the value: {getattr(error, 'problem', error)}",
            f"{file}:{line}",
            "a recipe holds numbers, strings, lists and mappings only",
        ) from None


def _seed(seed: Any, path: Path, lines: dict[tuple[str, ...], int]) -> int:
    if isinstance(seed, int) and not isinstance(seed, bool):
        return seed
    raise RecipeError(
        f"seed is {seed!r}", f"{path}:{lines.get(('seed',), 1)}", "write a whole number"
    )


def _override(recipe: Recipe, text: str) -> None:
    """Applies one `--set stage.key=value`; the value is read as YAML."""
    target, equals, value = text.partition("=")
    stage, *keys = target.split(".")
    where = f"--set {text}"
    if not equals:
        raise RecipeError("no '='", where, "write --set stage.key=value")
    try:
        parsed = yaml.load(value, Loader=_Loader)
    except yaml.YAMLError:
        raise RecipeError(f"'{value}' is not YAML", where, "quote the value") from None
    if target == "seed":
        recipe.seed = _seed(parsed, Path(where), {})
        return
    if stage not in recipe.stages:
        raise RecipeError(
            found=f"no stage '{stage}'",
            where=where,
            do=f"did you mean '{nearest(stage, recipe.stages)}'?"
            f"  Stages: {', '.join(recipe.stages)}",
        )
    if not keys:
        raise RecipeError("no key", where, f"write --set {stage}.key=value")
    held = recipe.stages[stage]
    for key in keys[:-1]:
        below = held.get(key)
        held[key] = dict(below) if isinstance(below, dict) else {}
        held = held[key]
    held[keys[-1]] = parsed
