"""Deletes stored stages that only old variants of a run folder have."""

from collections.abc import Sequence
from dataclasses import dataclass

from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.run_folder import lock
from clipmill.pipeline.run_folder.variants import variant, variants


@dataclass(frozen=True, kw_only=True)
class StoredStage:
    """A stage's folder, as `stages/NAME-FINGERPRINT`; its files and their bytes."""

    folder: str
    files: int
    bytes: int


def held_alone(run: Storage, numbers: Sequence[int]) -> tuple[StoredStage, ...]:
    """Returns the stored stages that these variants have and no other; what exports made stays.

    RecipeError for the variant that ran last, and where a recipe cannot be read: it may have any.
    """
    known, unreadable = variants(run)
    if unreadable:
        do = "move it away if no variant of it is wanted"
        raise RecipeError("a recipe that cannot be read", f"{run}/recipes/{unreadable[0]}", do)
    chosen = [variant(run, number) for number in numbers]
    if last := next((old for old in chosen if old.is_last), None):
        do = "run another recipe in this folder first, or delete the folder"
        raise RecipeError(f"variant {last.number} ran last", str(run), do)
    held = {old.number: set(old.ran["folders"].values()) for old in known}
    mine = {old.number for old in chosen}
    others = set().union(*(held[number] for number in held if number not in mine))
    there = {f"stages/{name}" for name in run.folders("stages")}
    names = sorted(set().union(*(held[number] for number in mine)) - others)
    return tuple(_stored(run, name) for name in names if name in there)


def free(run: Storage, numbers: Sequence[int]) -> tuple[StoredStage, ...]:
    """Deletes the stages that `held_alone` returns, and returns them.

    The recipes stay: run again, a variant makes its stages again.
    """
    with lock.held(run) as owned:
        found = held_alone(owned, numbers)
        for stored in found:
            owned.delete_folder(stored.folder)
    return found


def _stored(run: Storage, name: str) -> StoredStage:
    entries = run.entries(name, below=True)
    return StoredStage(folder=name, files=len(entries), bytes=sum(entry.size for entry in entries))
