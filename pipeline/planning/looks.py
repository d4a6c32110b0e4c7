"""Preflight: checks the sources that a recipe names for 2 s before anything runs, in threads.

Not checked are sources of stages that are done in the run folder, and paths within the run folder,
which may be made later.
"""

import contextlib
import threading
import time
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from clipmill.metadata.compaction import COMPACTED
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
    looks = []
    for planned in plan.stages.values():
        if run is None or not (run.child(planned.folder).has(COMPACTED) or _lies_in(planned, run)):
            seen = Seen()
            args = (planned, plan.read_of(planned.name), seen, until)
            thread = threading.Thread(target=_look, args=args, name=LOOKING, daemon=True)
            thread.start()  # so that a store without an answer does not delay the command
            looks.append((planned, seen, thread))
    for _, _, thread in looks:
        thread.join(max(0.0, until - time.monotonic()))
    return {planned.name: seen for planned, seen, _ in looks}


def are_late() -> bool:
    """Returns whether a check of this process still waits for an answer."""
    return any(thread.name == LOOKING for thread in threading.enumerate())


def refuse_missing(plan: Plan, seen: Mapping[str, Seen]) -> None:
    """Raises RecipeError if a source that the recipe names is missing or of another kind."""
    for name, source in seen.items():
        if source.error is not None:
            raise _as_recipe_error(plan, plan.stages[name], source.error)


def _look(planned: PlannedStage, names: Set[str], seen: Seen, until: float) -> None:
    stage = planned.stage
    try:
        with contextlib.suppress(ShardError):  # a damaged file costs its shards, not the run
            stage.look()
            if isinstance(stage, DatasetStage) and stage.files():
                stage.check_columns(names)
        if planned.elsewhere is not None:
            digest_of(planned.elsewhere, "key `data`")
        files = stage.files() if isinstance(stage, DatasetStage) else {}
        seen.is_late = False
        if isinstance(stage, DatasetStage) and files:
            seen.files, seen.bytes = len(files), sum(files.values())
            seen.rows, seen.shards = _summed(stage.counts(), until)
    except Exception as error:  # a user's stage may raise anything; the main thread reports it
        seen.error = error


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
