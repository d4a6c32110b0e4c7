"""What lies where a recipe says: looked at for 2 s before anything runs, in threads.

A stage that is done in the run folder needs its source no more, and what lies in the run folder may
be made later: neither is looked at.
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
LOOKING = "looks at what a recipe names"  # a thread that does, by its name


@dataclass
class Seen:
    """What a stage reads from outside the run; None where it was not counted in time."""

    files: int | None = None
    bytes: int | None = None
    rows: int | None = None
    shards: int | None = None
    is_late: bool = True  # it had no answer in time, and nothing is known of it
    error: Exception | None = None


def look(plan: Plan, run: Storage | None = None, seconds: float = SECONDS) -> dict[str, Seen]:
    """What is there, by stage, of those that read from outside; see `refuse_missing`."""
    until = time.monotonic() + seconds
    looks = []
    for planned in plan.stages.values():
        if run is None or not (run.child(planned.folder).has(COMPACTED) or _lies_in(planned, run)):
            seen = Seen()
            given = (planned, plan.read_of(planned.name), seen, until)
            thread = threading.Thread(target=_look, args=given, name=LOOKING, daemon=True)
            thread.start()  # a store that does not answer must not hold the command back
            looks.append((planned, seen, thread))
    for _, _, thread in looks:
        thread.join(max(0.0, until - time.monotonic()))
    return {planned.name: seen for planned, seen, _ in looks}


def are_late() -> bool:
    """Whether a look still waits for an answer in this process."""
    return any(thread.name == LOOKING for thread in threading.enumerate())


def refuse_missing(plan: Plan, seen: Mapping[str, Seen]) -> None:
    """RecipeError where something that a recipe names is not there, or is of another kind."""
    for name, one in seen.items():
        if one.error is not None:
            raise _as_recipe_error(plan, plan.stages[name], one.error)


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
    except Exception as error:  # a user's stage may hold anything; the main thread tells of it
        seen.error = error


def _summed(counts: Iterable[tuple[int, int]], until: float) -> tuple[int, int] | tuple[None, None]:
    """Rows and shards of all files; nothing where there is no time to count them all."""
    rows = shards = 0
    for more_rows, more_shards in counts:
        if time.monotonic() > until:
            return None, None
        rows, shards = rows + more_rows, shards + more_shards
    return (rows, shards) if shards else (None, None)


def _lies_in(planned: PlannedStage, run: Storage) -> bool:
    """Whether a setting names what is in the run folder: another stage may make it."""
    values = (getattr(planned.stage, field.name) for field in settings_fields(planned.stage))
    texts = [value.removeprefix("checkpoint:") for value in values if isinstance(value, str)]
    texts += [planned.elsewhere] if planned.elsewhere is not None else []
    return any(text.startswith((f"{run.uri}/", f"{run.path}/")) for text in texts)


def _as_recipe_error(plan: Plan, planned: PlannedStage, error: Exception) -> RecipeError:
    recipe, name = plan.recipe, planned.name
    if isinstance(error, ClipmillError):
        found, at, do = error.args
        return RecipeError(found, recipe.where_said(name, at), do)
    if isinstance(error, OSError):
        do = KEYS if wants_keys(error) else "check the path"
        return RecipeError(str(error), recipe.where(name), do)
    found = f"`look` of {planned.uses} failed: {type(error).__name__}: {error}"
    return RecipeError(found, planned.where, "mend the stage's file")
