"""The recipe that ran last in a run folder."""

import re
from typing import Any, TypedDict

from metadata.fingerprint import digest
from metadata.storage import Storage
from pipeline.errors import RecipeError

RAN_NAME = re.compile(r"\d{8}T\d{15}-[0-9a-f]{12}\.json")


class RanRecipe(TypedDict):
    """What `recipes/<time>-<digest>.json` holds."""

    name: str
    path: str
    seed: int
    stages: dict[str, dict[str, Any]]
    overrides: list[str]
    folders: dict[str, str]


def newest_name(run: Storage) -> str | None:
    """The name of the recipe that ran last in a folder."""
    names = (entry.name for entry in run.entries("recipes"))
    return max(filter(RAN_NAME.fullmatch, names), default=None)


def newest_recipe(run: Storage) -> tuple[str, RanRecipe]:
    """Name and content of the recipe that ran last in a folder."""
    name = newest_name(run)
    if name is None:
        raise RecipeError("no run", str(run), "check --run: a run folder holds run.json")
    ran = run.read_json(f"recipes/{name}", RanRecipe)
    if ran is None or not name.endswith(f"-{digest(ran)[:12]}.json"):
        raise RecipeError(
            found="a recipe that cannot be read",
            where=f"{run}/recipes/{name}",
            do="run the recipe again, or delete it: the one that ran before counts then",
        )
    return name, ran
