"""Lists the variants of a run folder: its different recipes, numbered by their first run.

A run stores its recipe in `recipes/` as it begins, unless the run before had the same. Two recipes
are one variant if seed, stages and settings are equal; their files and `--until` do not matter.
"""

import shlex
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clipmill.metadata.fingerprint import digest, plain
from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.planning.recipe import RECIPES, recipe_in
from clipmill.pipeline.run_folder.ran import RanRecipe, ran_names, read_ran
from clipmill.pipeline.run_folder.sessions import ends

READERS = 16  # threads, which wait for storage
ROUNDED_S = 0.05  # rounding of a session's stored end


@dataclass(frozen=True)
class Variant:
    """A recipe that ran, with its first and last start; `is_last`: no other has run since."""

    number: int
    file: str  # in recipes/, of its last run
    ran: RanRecipe
    first_ran: str  # 2026-11-26 14:03 UTC
    last_ran: str
    is_last: bool


@dataclass(frozen=True, kw_only=True)
class Change:
    """A setting, `stage.key`, in two recipes; None if it is not set."""

    key: str
    before: Any
    after: Any


@dataclass(frozen=True, kw_only=True)
class Changes:
    """The difference of two recipes: stages, and settings of stages that are in both."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    settings: tuple[Change, ...] = ()


def variants(run: Storage) -> tuple[list[Variant], list[str]]:
    """Returns the variants by number, and the files of recipes that cannot be read."""
    names = ran_names(run)
    if not names:
        raise RecipeError("no run", str(run), "check --run: a run folder holds run.json")
    with ThreadPoolExecutor(READERS) as readers:
        recipes = readers.map(lambda name: read_ran(run, name), names)
        ran_of = dict(zip(names, recipes, strict=True))
    began = {name: [_stamp(name)] for name in names}
    for start, end in ends(run):
        if before := [name for name in names if _stamp(name) <= end + ROUNDED_S]:
            began[before[-1]].append(start)  # the session ran the last recipe stored by its end
    files: dict[str, list[str]] = {}
    for name, ran in ran_of.items():
        if ran is not None:
            files.setdefault(digest([ran["seed"], ran["stages"]]), []).append(name)
    listed = []
    for number, group in enumerate(files.values(), start=1):
        last = group[-1]
        ran = ran_of[last]
        assert ran is not None
        times = [start for name in group for start in began[name]]
        first_ran, last_ran = _utc(min(times)), _utc(max(times))
        listed.append(Variant(number, last, ran, first_ran, last_ran, last == names[-1]))
    return listed, [name for name, ran in ran_of.items() if ran is None]


def variant(run: Storage, number: int) -> Variant:
    """Returns the variant of that number; raises RecipeError if there is none."""
    known, _ = variants(run)
    if not 1 <= number <= len(known):
        raise RecipeError(
            f"no variant {number}: this folder has seen {len(known)}",
            str(run),
            "clipmill diff --run … lists them",
        )
    return known[number - 1]


def run_again(run: Storage, variant: Variant) -> str:
    """Returns the command that runs a variant, and a remark if its recipe has changed since."""
    ran, path = variant.ran, Path(variant.ran["path"])
    name = path.stem if path.parent == RECIPES else str(path)
    sets = [word for text in ran["overrides"] for word in ("--set", text)]
    command = shlex.join(["clipmill", "run", name, *sets, "--out", str(run)])
    try:
        recipe = recipe_in(path.read_bytes(), path, ran["overrides"])
        is_same = [recipe.seed, plain(recipe.stages)] == [ran["seed"], ran["stages"]]
    except (OSError, RecipeError):
        is_same = False
    changed = f", once {path} is as it was: recipes/{variant.file} has its stages"
    return command if is_same else command + changed


def changes(before: RanRecipe, after: RanRecipe) -> Changes:
    """Returns the differences of two recipes, in their order."""
    old, new = before["stages"], after["stages"]
    settings = []
    if before["seed"] != after["seed"]:
        settings.append(Change(key="seed", before=before["seed"], after=after["seed"]))
    for stage in (stage for stage in new if stage in old):
        then, now = (
            {f"{stage}.{key}": value for key, value in _flat(settings_of)}
            for settings_of in (old[stage], new[stage])
        )
        settings += [
            Change(key=key, before=then.get(key), after=now.get(key))
            for key in {**now, **then}
            if then.get(key) != now.get(key)
        ]
    return Changes(
        added=tuple(stage for stage in new if stage not in old),
        removed=tuple(stage for stage in old if stage not in new),
        settings=tuple(settings),
    )


def _flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields `key.key` and value of each setting, nested ones included; a list is one value."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            for name, inner in _flat(value):
                yield f"{key}.{name}", inner
        else:
            yield key, value


def _stamp(name: str) -> float:
    """Returns when a recipe was stored, in seconds since 1970, from its file name; 0 if invalid."""
    try:
        second = datetime.strptime(name[:15], "%Y%m%dT%H%M%S").replace(tzinfo=UTC).timestamp()
    except ValueError:  # not our file
        return 0.0
    return second + int(name[15:24]) / 1e9


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
