"""Reads the recipes that ran in a run folder, with their settings."""

import re
import shlex
from typing import Any, TypedDict

from clipmill.metadata.fingerprint import digest, plain
from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.planning.recipe import Recipe

RAN_NAME = re.compile(r"\d{8}T\d{15}-[0-9a-f]{12}\.json")


class RanRecipe(TypedDict):
    """The content of `recipes/<time>-<digest>.json`."""

    name: str
    path: str
    seed: int
    stages: dict[str, dict[str, Any]]
    overrides: list[str]
    folders: dict[str, str]


def ran_names(run: Storage) -> list[str]:
    """Returns the names of the recipes that ran in a folder, by their start."""
    names = (entry.name for entry in run.entries("recipes"))
    return sorted(filter(RAN_NAME.fullmatch, names))


def newest_name(run: Storage) -> str | None:
    """Returns the name of the recipe that ran last in a folder; None if none did."""
    return max(ran_names(run), default=None)


def read_ran(run: Storage, name: str) -> RanRecipe | None:
    """Reads a file of `recipes/`; None if it is missing or damaged."""
    ran = run.read_json(f"recipes/{name}", RanRecipe)
    return ran if ran is not None and name.endswith(f"-{digest(ran)[:12]}.json") else None


def newest_recipe(run: Storage) -> tuple[str, RanRecipe]:
    """Returns name and content of the recipe that ran last; raises RecipeError if there is none."""
    name = newest_name(run)
    if name is None:
        raise RecipeError("no run", str(run), "check --run: a run folder holds run.json")
    ran = read_ran(run, name)
    if ran is None:
        raise RecipeError(
            found="a recipe that cannot be read",
            where=f"{run}/recipes/{name}",
            do="run the recipe again, or delete it: the one that ran before counts then",
        )
    return name, ran


def forgotten(recipe: Recipe, run: Storage) -> list[str]:
    """Returns a clause on each effective `--set` of the last run that this run leaves out."""
    name = newest_name(run)
    ran = run.read_json(f"recipes/{name}", RanRecipe) if name else None
    if ran is None or ran["name"] != recipe.name:
        return []
    repeated = {text.partition("=")[0] for text in recipe.overrides}
    clauses = []
    for text in ran["overrides"]:
        target = text.partition("=")[0]
        then, now = _value_at(ran["stages"], target), _value_at(plain(recipe.stages), target)
        if target not in repeated and then != now:
            here = "the recipe leaves it out now"
            here = here if now is None else f"this one has {str(now).strip()}"
            clauses.append(f"last run had {text}; {here}: --set {shlex.quote(text)} has it again")
    return clauses


def _value_at(stages: Any, target: str) -> Any:
    """Returns the value at `stage.key.key`; None if there is none."""
    for key in target.split("."):
        stages = stages.get(key) if isinstance(stages, dict) else None
    return stages
