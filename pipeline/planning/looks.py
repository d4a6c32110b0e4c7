"""Preflight: checks the sources that a recipe names for 2 s before anything runs, in threads.

Skips sources of stages that are done in the run folder, unless stages to come read columns there,
and paths within the run folder, which a stage may make later.
"""

import contextlib
import threading
import time
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from clipmill.metadata.compaction import COMPACTED
from clipmill.metadata.record import MANIFEST, Manifest
from clipmill.metadata.schema import KEEP, REPEATS
from clipmill.metadata.sealed import read_sealed_as
from clipmill.metadata.storage import KEYS, Storage, wants_keys
from clipmill.pipeline.errors import ClipmillError, RecipeError, ShardError
from clipmill.pipeline.planning.elsewhere import digest_of
from clipmill.pipeline.planning.plan import Plan
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.stage import DatasetStage, settings_fields

SECONDS = 2.0
LOOKING = "looks at what a recipe names"  # name of the threads


@dataclass
class Seen:
    """The size of a stage's source outside the run; None if not counted in time."""

    files: int | None = None
    bytes: int | None = None
    rows: int | None = None
    shards: int | None = None
    is_late: bool = True  # no answer in time
    error: Exception | None = None


def look(plan: Plan, run: Storage | None = None, seconds: float = SECONDS) -> dict[str, Seen]:
    """Checks the sources of the stages; returns the results by stage, see `refuse_missing`."""
    until = time.monotonic() + seconds
    looks, known = [], dict[str, Seen]()
    stages = plan.stages.values()
    done = {p.name for p in stages if run is not None and run.child(p.folder).has(COMPACTED)}
    for planned in stages:
        seen, names = Seen(), plan.read_of(planned.name, done)
        if run is not None and planned.name in done:
            manifest = read_sealed_as(run.child(planned.folder), MANIFEST, Manifest)
            if not planned.is_root or not manifest:
                continue
            known[planned.name] = seen = Seen(rows=manifest.rows, is_late=False)
            if not names or not _is_there(planned):
                continue
        elif run is not None and _lies_in(planned, run):
            continue
        args = (planned, names, seen, until)
        thread = threading.Thread(target=_look, args=args, name=LOOKING, daemon=True)
        thread.start()  # so that a store without an answer does not delay the command
        looks.append((planned, seen, thread))
    for _, _, thread in looks:
        thread.join(max(0.0, until - time.monotonic()))
    return known | {planned.name: seen for planned, seen, _ in looks}


def are_late() -> bool:
    """Returns whether a check of this process still waits for an answer."""
    return any(thread.name == LOOKING for thread in threading.enumerate())


def refuse_missing(plan: Plan, seen: Mapping[str, Seen]) -> None:
    """Raises RecipeError if a source that the recipe names is missing or of another kind, or has
    fewer rows than a stage wants."""
    for name, source in seen.items():
        if source.error is not None:
            raise _as_recipe_error(plan, plan.stages[name], source.error)
    for planned in plan.stages.values():
        least, most = planned.stage.least_rows, _most_rows(plan, seen, planned)
        if least and most is not None and least[1] > most:
            key, wanted = least
            found = f"'{planned.name}' wants {wanted:,} rows, and there are {most:,} at most"
            do = f"lower `{key}`, or give more rows"
            raise RecipeError(found, plan.recipe.where_said(planned.name, f"key `{key}`"), do)


def _most_rows(plan: Plan, seen: Mapping[str, Seen], planned: PlannedStage) -> int | None:
    """Returns the most rows that reach a stage; None if that is not known."""
    if planned.data:
        names = [planned.data, *([planned.kept_by] if planned.kept_by else [])]
        rows = [_kept(plan, seen, plan.stages[name]) for name in names]
        is_repeated = REPEATS.name in planned.mask
        return None if is_repeated else min((n for n in rows if n is not None), default=None)
    if not planned.root or any(REPEATS.name in bound for bound in planned.bindings):
        return None
    if planned.is_root and planned.parents:
        rows = [_kept(plan, seen, plan.stages[name]) for name in planned.parents]
        return None if None in rows else sum(filter(None, rows))
    if planned.is_root:
        return seen[planned.name].rows if planned.name in seen else None
    before = planned.bindings[0].get(KEEP.name, (planned.root, ""))[0]
    return _kept(plan, seen, plan.stages[before])


def _kept(plan: Plan, seen: Mapping[str, Seen], planned: PlannedStage) -> int | None:
    """Returns the most rows that a stage keeps of those that reach it."""
    most = _most_rows(plan, seen, planned)
    size: int | None = getattr(planned.stage, "rows", None) if planned.is_select else None
    return min((rows for rows in (most, size) if rows is not None), default=None)


def _look(planned: PlannedStage, names: Set[str], seen: Seen, until: float) -> None:
    stage, is_done = planned.stage, seen.rows is not None  # `look` knows the rows of one that is
    try:
        with contextlib.suppress(ShardError):  # a damaged file costs its shards, not the run
            if not is_done:
                stage.look()
            if isinstance(stage, DatasetStage) and stage.files():
                stage.check_columns(names)
        if is_done:
            return
        if planned.elsewhere is not None:
            digest_of(planned.elsewhere, "key `data`")
        files = stage.files() if isinstance(stage, DatasetStage) else {}
        seen.is_late = False
        if isinstance(stage, DatasetStage) and files:
            seen.files, seen.bytes = len(files), sum(files.values())
            seen.rows, seen.shards = _summed(stage.counts(), until)
    except Exception as error:  # a user's stage may raise anything; the main thread reports it
        seen.error = error


def _is_there(planned: PlannedStage) -> bool:
    """Returns whether a stage's source is still there."""
    with contextlib.suppress(ClipmillError, OSError):
        return isinstance(planned.stage, DatasetStage) and bool(planned.stage.files())
    return False


def _summed(counts: Iterable[tuple[int, int]], until: float) -> tuple[int, int] | tuple[None, None]:
    """Returns rows and shards of all files; (None, None) if time runs out."""
    rows = shards = 0
    for more_rows, more_shards in counts:
        if time.monotonic() > until:
            return None, None
        rows, shards = rows + more_rows, shards + more_shards
    return (rows, shards) if shards else (None, None)


def _lies_in(planned: PlannedStage, run: Storage) -> bool:
    """Returns whether a setting names a path in the run folder, which another stage may make."""
    values = (getattr(planned.stage, field.name) for field in settings_fields(planned.stage))
    texts = [value.removeprefix("checkpoint:") for value in values if isinstance(value, str)]
    texts += [planned.elsewhere] if planned.elsewhere is not None else []
    return any(text.startswith((f"{run.uri}/", f"{run.path}/")) for text in texts)


def _as_recipe_error(plan: Plan, planned: PlannedStage, error: Exception) -> RecipeError:
    recipe, name = plan.recipe, planned.name
    if isinstance(error, ClipmillError):
        found, where, do = error.args
        return RecipeError(found, recipe.where_said(name, where), do)
    if isinstance(error, OSError):
        do = KEYS if wants_keys(error) else "check the path"
        return RecipeError(str(error), recipe.where(name), do)
    found = f"`look` of {planned.uses} failed: {type(error).__name__}: {error}"
    return RecipeError(found, planned.where, "mend the stage's file")
