"""Binds a run folder to one format and one seed, and records the recipes that ran there."""

import json
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import msgspec

from clipmill.metadata.fingerprint import digest, plain
from clipmill.metadata.record import MANIFEST
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
    """The content of `run.json`, apart from its digest, which older ones lack."""

    format: int
    seed: int
    stages: dict[str, Remembered] = field(default_factory=dict)  # with a user's own code, by folder


def refuse_foreign(run: Storage) -> None:
    """Raises RecipeError if the folder holds files but never held a run."""
    if not run.has("run.json") and newest_name(run) is None:
        refuse_others(run, (lock.NAME,), "give --out a new folder, or an empty one")


def refuse_another_seed(plan: Plan, run: Storage) -> Claim:
    """Returns the folder's claim; RecipeError if it is of another seed or format, or unreadable."""
    stored = _stored(run)
    if stored is None:
        raise RecipeError(
            found="a run folder whose seed cannot be read",
            where=f"{run}/run.json",
            do=f"delete it if the run's seed is {plan.seed}, or use another --out",
        )
    if stored.format != FORMAT:
        raise RecipeError(f"a run folder of format {stored.format}", str(run), "use another --out")
    if stored.seed != plan.seed:
        raise RecipeError(
            found=f"seed {plan.seed}, and this run has seed {stored.seed}",
            where=str(run),
            do=f"use another --out, or --set seed={stored.seed}",
        )
    return stored


def claim(plan: Plan, run: Storage) -> None:
    """Writes `run.json` and the recipe; raises RecipeError if the folder has another seed."""
    if not run.has("run.json"):
        _put(run, Claim(FORMAT, plan.seed))
    _remember(plan, run, refuse_another_seed(plan, run))
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
    """Returns the stages with a user's own code, by folder, as they were when they stored data.

    Empty if `run.json` cannot be read; the next run there refuses it.
    """
    stored = _stored(run) if run.has("run.json") else None
    return stored.stages if stored else {}


def other_code(plan: Plan, run: Storage) -> list[str]:
    """Returns a sentence on each stage whose own files have changed since it stored data."""
    own = own_files(plan)
    stored = remembered_in(run) if own else {}
    notes = []
    for name, files in own.items():
        planned = plan.stages[name]
        before = stored[planned.folder].files if planned.folder in stored else files
        changed = [path for path in {**before, **files} if before.get(path) != files.get(path)]
        if changed and _is_begun(run, planned.folder):
            notes.append(
                f"'{name}' is stored as another {', '.join(changed)} made it: raise its `version`,"
                f" {planned.stage.version}, where a value may differ, and it is made again"
            )
    return notes


def _remember(plan: Plan, run: Storage, stored: Claim) -> None:
    """Records stages with own code in `run.json`; a stage with stored data keeps its entry."""
    stages = dict(stored.stages)
    for name, files in own_files(plan).items():
        planned = plan.stages[name]
        if planned.folder not in stages or not _is_begun(run, planned.folder):
            chosen = plan.recipe.stages[name].get("read", {})
            stages[planned.folder] = remembered(planned, chosen, files)
    if stages != stored.stages:
        _put(run, replace(stored, stages=stages))


def _put(run: Storage, content: Claim) -> None:
    value = json.loads(json.dumps(asdict(content)))
    text = json.dumps({**value, "digest": digest(value)})
    run.put("run.json", text.encode(), point="run")


def _stored(run: Storage) -> Claim | None:
    """Reads `run.json`; None if it is missing or damaged."""
    value = run.read_json("run.json", dict[str, Any])
    if value is None or value.pop("digest", None) not in (None, digest(value)):
        return None
    try:
        return msgspec.convert(value, Claim)
    except msgspec.ValidationError:
        return None


def _is_begun(run: Storage, folder: str) -> bool:
    """Returns whether a stage is complete, or its folder has data, such as a shard."""
    stage = run.child(folder)  # a large one that is finished is not listed
    return stage.has(MANIFEST) or any(
        not entry.name.endswith(".json") for entry in stage.entries(below=True)
    )


def own_files(plan: Plan) -> dict[str, dict[str, str]]:
    """Returns SHA-256 by path of a user's own files, for each stage that uses any."""
    own = {}
    for name, planned in plan.stages.items():
        model = getattr(planned.stage, "model", None)
        scheme = model.partition(":")[0] if isinstance(model, str) else ""
        if files := own_code.imported([planned.uses, f"models.{scheme}"]):
            own[name] = {below: file.digest for below, file in sorted(files.items())}
    return own
