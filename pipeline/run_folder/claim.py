"""Whose a run folder is: one format and one seed, and the recipes that ran there."""

import json
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import msgspec

from clipmill.metadata.fingerprint import digest, plain
from clipmill.metadata.storage import Storage
from clipmill.pipeline import own_code
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.planning.plan import Plan
from clipmill.pipeline.planning.remembered import Remembered, remembered
from clipmill.pipeline.run_folder import lock
from clipmill.pipeline.run_folder.ran import newest_name
from clipmill.pipeline.target import refuse_others

FORMAT = 1  # of the run folder


@dataclass(frozen=True)
class Claim:
    """What `run.json` holds, beside a digest of all that; older ones have none."""

    format: int
    seed: int
    stages: dict[str, Remembered] = field(default_factory=dict)  # those with own code, by folder


def refuse_foreign(run: Storage) -> None:
    """RecipeError where the folder holds files, and no run ever was there."""
    if not run.has("run.json") and newest_name(run) is None:
        refuse_others(run, (lock.NAME,), "give --out a new folder, or an empty one")


def refuse_another_seed(plan: Plan, run: Storage) -> None:
    """RecipeError where the folder belongs to another seed."""
    held = _held(run)
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
        _put(run, Claim(FORMAT, plan.seed))
    refuse_another_seed(plan, run)
    _remember(plan, run)
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


def remembered_in(run: Storage) -> dict[str, Remembered]:
    """By folder, the stages with code of a user's own, as they were when they stored what is there.

    None where `run.json` cannot be read: whoever writes there is told.
    """
    held = _held(run) if run.has("run.json") else None
    return held.stages if held else {}


def is_at_hand(stage: Remembered) -> bool:
    """Whether all own files that made a stage are there, in this form or another."""
    return stage.files.keys() <= own_code.own().keys()


def other_code(plan: Plan, run: Storage) -> list[str]:
    """A sentence on each stage whose own files are not those that made what is stored."""
    own = own_files(plan)
    held = remembered_in(run) if own else {}
    told = []
    for name, files in own.items():
        planned = plan.stages[name]
        before = held[planned.folder].files if planned.folder in held else files
        changed = [it for it in {**before, **files} if before.get(it) != files.get(it)]
        if changed and _is_begun(run, planned.folder):
            told.append(
                f"'{name}' is stored as another {', '.join(changed)} made it: raise its `version`,"
                f" {planned.stage.version}, where a value may differ, and it is made again"
            )
    return told


def _remember(plan: Plan, run: Storage) -> None:
    """Writes what lets others look at stages with own code; of one that is stored, as it was."""
    held = _held(run)
    assert held is not None  # it has our seed
    stages = dict(held.stages)
    for name, files in own_files(plan).items():
        planned = plan.stages[name]
        if planned.folder not in stages or not _is_begun(run, planned.folder):
            chosen = plan.recipe.stages[name].get("read", {})
            stages[planned.folder] = remembered(planned, chosen, files)
    if stages != held.stages:
        _put(run, replace(held, stages=stages))


def _put(run: Storage, made: Claim) -> None:
    value = json.loads(json.dumps(asdict(made)))
    text = json.dumps({**value, "digest": digest(value)})
    run.put("run.json", text.encode(), point="run")


def _held(run: Storage) -> Claim | None:
    """What `run.json` holds; None where it is not as it was stored."""
    value = run.read_json("run.json", dict[str, Any])
    if value is None or value.pop("digest", None) not in (None, digest(value)):
        return None
    try:
        return msgspec.convert(value, Claim)
    except msgspec.ValidationError:
        return None


def _is_begun(run: Storage, folder: str) -> bool:
    """Whether a stage's folder has more than what failed: a shard, a checkpoint."""
    return any(not it.name.endswith(".json") for it in run.child(folder).entries(below=True))


def own_files(plan: Plan) -> dict[str, dict[str, str]]:
    """Of each stage that is made with files of a user's own, their SHA-256 by path."""
    found = {}
    for name, planned in plan.stages.items():
        model = getattr(planned.stage, "model", None)
        scheme = model.partition(":")[0] if isinstance(model, str) else ""
        if files := own_code.imported([planned.uses, f"models.{scheme}"]):
            found[name] = {below: file.digest for below, file in sorted(files.items())}
    return found
