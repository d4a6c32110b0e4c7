"""Makes a stage from `uses` and YAML keys: finds its class by file name, and types its settings."""

import dataclasses
import inspect
import re
import typing
from typing import Any

import msgspec

from clipmill.metadata.schema import Column
from clipmill.pipeline import own_code
from clipmill.pipeline.errors import RecipeError, did_you_mean
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.pipeline.planning.remembered import stand_in
from clipmill.pipeline.planning.takes import at_path, comments_of, in_words, setting_types
from clipmill.pipeline.stage import Artifact, Determinism, Stage, edges_taken, settings_fields
from clipmill.pipeline.terminal import cut

ENGINE_KEYS = ("uses", "from", "data", "only", "read")
NO_STAGES = ("ops", "models", "clip", "losses", "readers", "towers")
TUPLES = ("takes", "gives", "reads", "optional_reads", "writes", "reasons", "transient")


def known_uses() -> list[str]:
    """Lists every `kind.name` of clipmill's and of a user's own folders."""
    return sorted(name for name in own_code.files() if name.partition(".")[0] not in NO_STAGES)


def declaring(name: str) -> list[str]:
    """Lists the known stages whose class sets this attribute, ours first, without importing any."""
    files, mark = own_code.files(), f"\n    {name} = ".encode()
    declared = [uses for uses in known_uses() if mark in files[uses].read()]
    return sorted(declared, key=lambda uses: files[uses].is_own)


def file_of(uses: str) -> own_code.File:
    """Returns the file of a known stage."""
    return own_code.files()[uses]


def stage_class(uses: str, where: str) -> type[Stage]:
    """Returns the one stage class of `stages/<kind>/<name>.py`; raises RecipeError if unfit."""
    if own_code.find(uses) is None:
        raise RecipeError(
            found=f"no stage '{uses}'",
            where=where,
            do=f"{did_you_mean(uses, known_uses())}"
            "  A stage of your own is a file stages/<kind>/<name>.py beside the recipe, or in the"
            " folder of --stages",
        )
    module = own_code.load(uses, where)
    module_name = module.__name__
    classes = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, Stage) and member.__module__ == module_name
    ]
    if len(classes) != 1:
        raise RecipeError(
            f"{len(classes)} stage classes in {module_name}", where, "one file holds one stage"
        )
    (cls,) = classes
    shown = f"{module_name}.{cls.__name__}"
    if "__dataclass_params__" not in vars(cls):
        do = "write @dataclass(frozen=True, kw_only=True) above it"
        raise RecipeError(f"{shown} is no dataclass of its own", where, do)
    for name in TUPLES:
        value = getattr(cls, name)
        if isinstance(value, str | Column | None):  # a comma was forgotten
            value = f"the column '{value.name}'" if isinstance(value, Column) else repr(value)
            do = f"write a tuple, even of one: {name} = (…,)"
            raise RecipeError(f"{shown} has {name} = {value}", where, do)
    if isinstance(cls.writes, tuple) and not all(isinstance(each, Column) for each in cls.writes):
        do = 'write a Column: Column(name="mine", dtype=pa.float32(), unit="", doc="What it says.")'
        raise RecipeError(f"{shown} has writes = {cut(repr(cls.writes))}", where, do)
    try:
        if module_name.startswith(own_code.NAME):  # ours are tested
            setting_types(cls)
    except (NameError, TypeError) as error:
        do = "import what its fields name, and give them types that a recipe can hold"
        raise RecipeError(f"{shown} has a setting of no type: {error}", where, do) from None
    missing = [name for name in ("version", "determinism") if not hasattr(cls, name)]
    missing += sorted(cls.__abstractmethods__)
    if missing:
        do = 'write version = 1, determinism = "exact", "close" or "recorded", and open or run'
        raise RecipeError(f"{shown} declares no {' and no '.join(missing)}", where, do)
    if cls.determinism not in typing.get_args(Determinism):
        do = f"write one of: {', '.join(typing.get_args(Determinism))}"
        raise RecipeError(f"{shown} has determinism = {cls.determinism!r}", where, do)
    return cls


def typed_settings(recipe: Recipe, name: str) -> Stage:
    """Makes a stage from its typed settings; errors name the key, its line and the nearest name."""
    keys = recipe.stages[name]
    uses = keys.get("uses")
    if not isinstance(uses, str) or "." not in uses:
        raise RecipeError(
            f"`uses` is {uses!r}", recipe.where(name, "uses"), "write `uses: kind.name`"
        )
    if stated := recipe.remembered.get(name):  # declared in a run folder: no code is loaded
        engine_keys = (*ENGINE_KEYS, "rows") if "data" in stated.takes else ENGINE_KEYS
        return stand_in(stated, {key: keys[key] for key in keys if key not in engine_keys})
    cls = stage_class(uses, recipe.where(name, "uses"))
    known = {field.name for field in settings_fields(cls)}
    engine_keys = (*ENGINE_KEYS, "rows") if "data" in edges_taken(cls) else ENGINE_KEYS
    settings = {key: keys[key] for key in keys if key not in engine_keys}
    for key in settings:
        if key not in known:
            raise RecipeError(
                found=f"unknown key '{key}'",
                where=recipe.where(name, key),
                do="put the value before it in quotes: inside {…} a comma ends a value"
                if " " in key
                else did_you_mean(key, (*sorted(known), *engine_keys), f"{uses} knows"),
            )
    try:
        stage: Stage = msgspec.convert(settings, cls)
    except msgspec.ValidationError as error:
        raise _unfit(recipe, name, cls, settings, error) from None
    except RecipeError as error:  # raised by the stage, which does not know the recipe's file
        found, where, do = error.args
        raise RecipeError(found, recipe.where_said(name, where), do) from None
    _check_nested(recipe, name, settings, stage)
    kinds = typing.get_args(Artifact)
    for kind, file in stage.artifacts:
        if kind not in kinds:
            do = f"declare one of: {', '.join(kinds)}"
            raise RecipeError(f"{uses} declares {file} to hold {kind!r}", recipe.where(name), do)
    return stage


def _unfit(
    recipe: Recipe, name: str, cls: type[Stage], settings: dict[str, Any], error: Exception
) -> RecipeError:
    """Returns the error for a setting that is missing, of another type or out of range."""
    text, separator, path = str(error).rpartition(" - at `$")
    if not separator:  # an error about the settings as a whole
        text, path = path, ""
    if error.__cause__ is not None:  # a ValueError raised by the stage
        keys, _, _ = at_path(cls, settings, path)
        do = f"mend the settings of {recipe.stages[name]['uses']}"
        return RecipeError(str(error.__cause__), recipe.where(name, *keys), do)
    missing = re.match(r"Object missing required field `(\w+)`", text)
    keys, value, kind = at_path(cls, settings, f"{path}.{missing[1]}" if missing else path)
    key = ".".join(keys)
    do = f"write {keys[-1]}: {in_words(kind)}"
    if not missing:
        return RecipeError(f"{key} is {cut(repr(value))}", recipe.where(name, *keys), do)
    meaning = comments_of(cls).get(key)
    do += f" ({meaning})" if meaning else ""
    return RecipeError(f"`{key}` is missing", recipe.where(name, *keys[:-1]), do)


def _check_nested(recipe: Recipe, name: str, settings: dict[str, Any], stage: Stage) -> None:
    """Raises RecipeError for unknown keys inside nested settings, which msgspec ignores."""
    for key, value in settings.items():
        nested = getattr(stage, key)
        is_several = isinstance(value, list) and isinstance(nested, tuple)
        pairs = zip(value, nested, strict=True) if is_several else [(value, nested)]
        for written, typed in pairs:
            if isinstance(written, dict) and dataclasses.is_dataclass(typed):
                known = {field.name for field in dataclasses.fields(typed)}
                for inner in written:
                    if inner not in known:
                        raise RecipeError(
                            found=f"unknown key '{key}.{inner}'",
                            where=recipe.where(name, key, inner),
                            do=did_you_mean(inner, sorted(known), f"{key} knows"),
                        )
