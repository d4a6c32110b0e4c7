"""Binds a run folder to one pool: `origin.json` of each root names some of its files.

A pool's path is in no fingerprint, so that the pool may move. Under another path at least half of
the known files must exist by name and size; else it is another pool, which would replace the first.
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
KNOWN = 100  # files of a pool, sampled by a hash of their names


@dataclass(frozen=True)
class Origin:
    """The content of `origin.json`."""

    at: dict[str, str]  # settings with the pool's place, without access keys
    files: dict[str, int]  # relative path -> bytes


def refuse_another_pool(plan: Plan, run: Storage) -> None:
    """Raises RecipeError if a root of the plan is not the pool that the run folder belongs to."""
    for planned, folder in _roots(plan, run):
        known = folder.read_json(NAME, Origin)
        if known is None or known.at == _place(planned) or not folder.has(COMPACTED):
            continue  # nothing is derived from a root that never ended
        files = _files(planned)
        same = sum(files.get(name) == size for name, size in known.files.items())
        if files and 2 * same < len(known.files):
            raise RecipeError(
                f"another pool: of {len(known.files)} files known it has {same} by name and size",
                f"{planned.where}: {_words(_place(planned))}",
                f"use another --out: {run} belongs to {_words(known.at)}",
            )


def remember_pools(plan: Plan, run: Storage) -> None:
    """Stores the current files of each root of the plan."""
    for planned, folder in _roots(plan, run):
        files = _files(planned)
        sample = sorted(files, key=digest)[:KNOWN]
        origin = Origin(_place(planned), {name: files[name] for name in sorted(sample)})
        if files and folder.read_json(NAME, Origin) != origin:
            folder.put(NAME, json.dumps(asdict(origin)).encode(), point="origin")


def _roots(plan: Plan, run: Storage) -> Iterator[tuple[PlannedStage, Storage]]:
    for planned in plan.stages.values():
        if planned.is_root:
            yield planned, run.child(planned.folder)


def _files(planned: PlannedStage) -> dict[str, int]:
    assert isinstance(planned.stage, DatasetStage)
    with contextlib.suppress(ClipmillError, OSError):  # the root itself reports errors
        return planned.stage.files()
    return {}


def _place(planned: PlannedStage) -> dict[str, str]:
    place = {}
    for field in settings_fields(planned.stage):
        if not field.metadata.get("fingerprint", True):
            value = getattr(planned.stage, field.name)
            is_local = isinstance(value, str) and "://" not in value
            place[field.name] = os.path.abspath(value) if is_local else without_keys(str(value))
    return place


def _words(place: dict[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in place.items())
