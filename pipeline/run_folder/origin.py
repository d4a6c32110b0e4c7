"""A run folder belongs to one pool: which files a root was made of, in its `origin.json`.

Where a pool lies is in no fingerprint, so that it may move. Under another path at least half of
the files known must be there, by name and size: else it is another pool, which would take the
first one's place.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from clipmill.metadata.compaction import COMPACTED
from clipmill.metadata.fingerprint import digest
from clipmill.metadata.keys import without_keys
from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import ClipmillError, RecipeError
from clipmill.pipeline.planning.plan import Plan
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.stage import DatasetStage, settings_fields

NAME = "origin.json"
KNOWN = 100  # files of a pool, drawn by a hash of their names


@dataclass(frozen=True)
class Origin:
    """What `origin.json` holds."""

    at: dict[str, str]  # the settings that say where the pool lies, without keys
    files: dict[str, int]  # name below it, and bytes


def refuse_another_pool(plan: Plan, run: Storage) -> None:
    """RecipeError where a root of the plan is not the pool that the run folder belongs to."""
    for planned, folder in _roots(plan, run):
        held = folder.read_json(NAME, Origin)
        if held is None or held.at == _at(planned) or not folder.has(COMPACTED):
            continue  # of a root that never ended nothing was made
        there = _files(planned)
        found = sum(there.get(name) == size for name, size in held.files.items())
        if there and 2 * found < len(held.files):
            raise RecipeError(
                f"another pool: of {len(held.files)} files known it has {found} by name and size",
                f"{planned.where}: {_words(_at(planned))}",
                f"use another --out: {run} belongs to {_words(held.at)}",
            )


def remember_pools(plan: Plan, run: Storage) -> None:
    """Notes what each root of the plan is made of today."""
    for planned, folder in _roots(plan, run):
        there = _files(planned)
        drawn = sorted(there, key=digest)[:KNOWN]
        origin = Origin(_at(planned), {name: there[name] for name in sorted(drawn)})
        if there and folder.read_json(NAME, Origin) != origin:
            folder.put(NAME, json.dumps(asdict(origin)).encode(), point="origin")


def _roots(plan: Plan, run: Storage) -> Iterator[tuple[PlannedStage, Storage]]:
    for planned in plan.stages.values():
        if planned.is_root:
            yield planned, run.child(planned.folder)


def _files(planned: PlannedStage) -> dict[str, int]:
    assert isinstance(planned.stage, DatasetStage)
    with contextlib.suppress(ClipmillError, OSError):  # the root itself says what is wrong there
        return planned.stage.files()
    return {}


def _at(planned: PlannedStage) -> dict[str, str]:
    at = {}
    for field in settings_fields(planned.stage):
        if not field.metadata.get("fingerprint", True):
            value = getattr(planned.stage, field.name)
            is_local = isinstance(value, str) and "://" not in value
            at[field.name] = os.path.abspath(value) if is_local else without_keys(str(value))
    return at


def _words(at: dict[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in at.items())
