"""Whose a run folder is: one format and one seed, and the recipes that ran there."""

import json
import time
from dataclasses import asdict, dataclass
from typing import Any

from metadata.fingerprint import digest, plain
from metadata.storage import Storage
from pipeline.errors import RecipeError
from pipeline.planning.plan import Plan
from pipeline.run_folder import lock
from pipeline.run_folder.ran import newest_name
from pipeline.target import refuse_others

FORMAT = 1  # of the run folder


@dataclass(frozen=True)
class Claim:
    """What `run.json` holds."""

    format: int
    seed: int


def refuse_foreign(run: Storage) -> None:
    """RecipeError where the folder holds files, and no run ever was there."""
    if not run.has("run.json") and newest_name(run) is None:
        refuse_others(run, (lock.NAME,), "give --out a new folder, or an empty one")


def refuse_another_seed(plan: Plan, run: Storage) -> None:
    """RecipeError where the folder belongs to another seed."""
    held = run.read_json("run.json", Claim)
    if held is None:
        raise RecipeError(
            found="a run folder whose seed cannot be read",
            where=f"{run}/run.json",
            do=f"delete it if the run's seed is {plan.seed}, or use another --out",
        )
    if held.format != FORMAT:
        raise RecipeError(f"a run folder of format {held.format}", str(run), "use another --out")
    if held.seed != plan.seed:
        raise RecipeError(
            found=f"seed {plan.seed}, and this run has seed {held.seed}",
            where=str(run),
            do=f"use another --out, or --set seed={held.seed}",
        )


def claim(plan: Plan, run: Storage) -> None:
    """Writes `run.json` and the recipe; RecipeError where the folder belongs to another seed."""
    if not run.has("run.json"):
        text = json.dumps(asdict(Claim(FORMAT, plan.seed)))
        run.put("run.json", text.encode(), point="run")
    refuse_another_seed(plan, run)
    recipe = plan.recipe
    whole = {
        "name": recipe.name,
        "path": recipe.path,
        "seed": recipe.seed,
        "stages": plain(recipe.stages),
        "overrides": plain(recipe.overrides),
        "folders": {name: planned.folder for name, planned in plan.stages.items()},
    }
    same = digest(whole)[:12]
    newest = newest_name(run)
    before = newest and run.read_json(f"recipes/{newest}", dict[str, Any])
    if not before or digest(before)[:12] != same:
        second, rest = divmod(time.time_ns(), 10**9)
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(second)) + f"{rest:09d}"
        text = json.dumps(whole, indent=1)
        run.put(f"recipes/{stamp}-{same}.json", text.encode(), point="recipe")
