"""Reads recipes passed from Python: a name, a path, YAML text or a dict, and settings as values."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.planning.recipe import Recipe, load_recipe, recipe_in, value_of

Given = str | PathLike[str] | Mapping[str, Any]
TEXT = Path("recipe.yaml")  # name of a recipe without a file
PLAIN = "a recipe holds numbers, strings, lists and mappings"


def recipe_given(
    recipe: Given,
    seed: int | None = None,
    sets: Mapping[str, Any] | None = None,
    stages: Mapping[str, Any] | None = None,
) -> Recipe:
    """Returns the recipe of a name, a path, YAML text of several lines or a mapping.

    `sets` has values by `stage.key`, `stages` has mappings of values by stage; each is recorded as
    the equivalent `--set`.
    """
    overrides = [f"{key}={_text(value, key)}" for key, value in _each(seed, sets, stages)]
    if isinstance(recipe, Mapping):
        import yaml

        text = yaml.safe_dump(_plain(recipe, "the recipe"), sort_keys=False, allow_unicode=True)
        return recipe_in(text.encode(), TEXT, overrides)
    if isinstance(recipe, str) and "\n" in recipe:
        return recipe_in(recipe.encode(), TEXT, overrides)
    return load_recipe(fspath(recipe), overrides)


def _each(
    seed: int | None, sets: Mapping[str, Any] | None, stages: Mapping[str, Any] | None
) -> Iterator[tuple[str, Any]]:
    """Yields every setting as `stage.key` and value."""
    if seed is not None:
        yield "seed", seed
    yield from (sets or {}).items()
    for stage, keys in (stages or {}).items():
        if not isinstance(keys, Mapping):
            do = f"write {stage}={{\"key\": value}}, where the recipe has a stage '{stage}'"
            raise RecipeError(f"{stage}={keys!r}", "the arguments", do)
        yield from ((f"{stage}.{key}", value) for key, value in keys.items())


def _text(value: Any, key: str) -> str:
    """Returns the value as YAML: plain text if that reads back the same, else JSON."""
    plain = _plain(value, key)
    if isinstance(plain, str) and plain == plain.strip() and "\n" not in plain:
        with suppress(RecipeError):
            if value_of(plain, key) == plain:
                return plain
    text = json.dumps(plain, ensure_ascii=False)
    text = {"Infinity": ".inf", "-Infinity": "-.inf"}.get(text, text)
    if value_of(text, key) != plain:
        raise RecipeError(f"{key} is {value!r}", "the arguments", PLAIN)
    return text


def _plain(value: Any, where: str) -> Any:
    """Converts the value to types of YAML; raises RecipeError if it cannot."""
    if getattr(value, "ndim", None) == 0:  # a NumPy scalar, which may be a float or str too
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, Mapping):
        return {key: _plain(inner, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    raise RecipeError(f"{where} is {value!r}", "the arguments", PLAIN)
