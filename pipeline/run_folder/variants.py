"""The variants of a run folder: the recipes that ran there, each once, numbered as they first came.

`recipes/` holds them all: a run stores its recipe as it begins, unless the run before had the same.
Two are one variant where seed, stages and settings are equal, whatever file they stood in, and
whether or not `--until` ended them early.
"""

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from clipmill.metadata.fingerprint import digest
from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.run_folder.ran import RanRecipe, ran_names, read_ran
from clipmill.pipeline.run_folder.sessions import ends

READERS = 16  # threads, that wait for a store
ROUNDED_S = 0.05  # by which a session's stored end may be early


@dataclass(frozen=True)
class Variant:
    """A recipe that ran: when it first and last began, and whether no other ran since."""

    number: int
    file: str  # in recipes/, of its last run there
    ran: RanRecipe
    first_ran: str  # 2026-11-26 14:03 UTC
    last_ran: str
    is_last: bool


@dataclass(frozen=True, kw_only=True)
class Change:
    """A setting, `stage.key`, in two recipes; null where it is not set."""

    key: str
    before: Any
    after: Any


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What one recipe has and another has not: stages, and settings of the stages of both."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    settings: tuple[Change, ...] = ()


def variants(run: Storage) -> tuple[list[Variant], list[str]]:
    """Every variant in the order of its number; and the files of recipes that cannot be read."""
    names = ran_names(run)
    if not names:
        raise RecipeError("no run", str(run), "check --run: a run folder holds run.json")
    with ThreadPoolExecutor(READERS) as readers:
        found = dict(zip(names, readers.map(lambda name: read_ran(run, name), names), strict=True))
    began = {name: [_stamp(name)] for name in names}
    for start, end in ends(run):
        if before := [name for name in names if _stamp(name) <= end + ROUNDED_S]:
            began[before[-1]].append(start)  # whose recipe was the last to begin by its end
    files: dict[str, list[str]] = {}
    for name, ran in found.items():
        if ran is not None:
            files.setdefault(digest([ran["seed"], ran["stages"]]), []).append(name)
    made = []
    for number, its in enumerate(files.values(), start=1):
        ran = found[its[-1]]
        assert ran is not None
        times = [at for name in its for at in began[name]]
        made.append(
            Variant(number, its[-1], ran, _utc(min(times)), _utc(max(times)), its[-1] == names[-1])
        )
    return made, [name for name, ran in found.items() if ran is None]


def variant(run: Storage, number: int) -> Variant:
    """The variant of that number; RecipeError where there is none."""
    there, _ = variants(run)
    if not 1 <= number <= len(there):
        raise RecipeError(
            f"no variant {number}: this folder has seen {len(there)}",
            str(run),
            "clipmill diff --run … lists them",
        )
    return there[number - 1]


def changes(before: RanRecipe, after: RanRecipe) -> Changes:
    """What differs, in the order of the recipes."""
    old, new = before["stages"], after["stages"]
    settings = []
    if before["seed"] != after["seed"]:
        settings.append(Change(key="seed", before=before["seed"], after=after["seed"]))
    for stage in (stage for stage in new if stage in old):
        then, now = (
            {f"{stage}.{key}": value for key, value in _flat(its)}
            for its in (old[stage], new[stage])
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
    """`key.key` and value of each setting, of those below it; a list is one value."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            for name, inner in _flat(value):
                yield f"{key}.{name}", inner
        else:
            yield key, value


def _stamp(name: str) -> float:
    """Seconds since 1970 at which a recipe was stored, from its file's name; 0 where it is none."""
    try:
        second = datetime.strptime(name[:15], "%Y%m%dT%H%M%S").replace(tzinfo=UTC).timestamp()
    except ValueError:  # a file of another's
        return 0.0
    return second + int(name[15:24]) / 1e9


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
