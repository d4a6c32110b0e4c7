"""Counts attempts at a piece of work in storage before each starts, so that a crash is seen.

Success or a clean error removes the count. Work that ends its worker three times within one run
fails. Workers that somebody else killed do not count, and the count starts anew after a run that
was killed as a whole or a cluster machine that went away: none tells anything of the work.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.outputs import OUT
from clipmill.metadata.record import Failure
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.failures import explained
from clipmill.pipeline.errors import (
    ClipmillError,
    CrashedError,
    RetryableError,
    ShardError,
    StageError,
)

T = TypeVar("T")
FOLDER = "attempts"  # of a row stage's shards: removed all at once, in few requests
LOOK = "look for a crash in its native code or for too little memory"
MAX_ATTEMPTS, MAX_KILLED = 3, 20


@dataclass(frozen=True)
class Count:
    """The content of `<name>.attempt`."""

    inputs: str
    run: str
    attempts: int  # within that run


def attempt(
    work: Callable[[int], T],
    folder: Storage,
    name: str,
    inputs: str,
    run: str,
    place: str,
    least: int = 1,
    most: int = MAX_ATTEMPTS,
    begun: bool = True,
    keep_count: bool = False,
    ended: str = "",
    killed: int = 0,
) -> T:
    """Returns the result of work(number), tried up to three times on a RetryableError.

    The attempt is counted in `<name>.attempt`, anew for another digest of the inputs. Raises
    CrashedError if fewer than `least` of `most` attempts are left, because the others ended their
    worker; that count stays.

    `begun=False`: no worker can have died of this work, so no earlier count is read. `keep_count`:
    the count outlives a success; the caller removes it. `ended`: why the executor or the kernel
    ended the last worker, if they did. `killed`: attempts in this run whose workers somebody else
    killed; with MAX_KILLED of them it is a StageError, as the run would go on for ever.
    """
    if killed >= MAX_KILLED:
        raise StageError(
            f"{place} was killed from outside {killed} times, and got no further",
            str(folder),
            "see who kills its workers; then run again: it goes on, and counts from zero",
        )
    if _begin(folder, name, inputs, run, most + killed, begun) < least:
        raise CrashedError(
            f"{place} ended its worker {most} times" + (f": {ended}" if ended else ""),
            str(folder),
            ("give fewer workers, or bound what a row takes" if ended else LOOK)
            + ", then run again with --retry crashed",
        )
    try:
        result = _tried(work, place, folder)
    except (StageError, ShardError, DamagedError):
        end(folder, name)
        raise
    if not keep_count:
        end(folder, name)
    return result


def _tried(work: Callable[[int], T], place: str, folder: Storage) -> T:
    number = 1
    while True:
        try:
            with explained(place, folder):
                return work(number)
        except RetryableError:
            if number == MAX_ATTEMPTS:
                raise
        number += 1


def _begin(folder: Storage, name: str, inputs: str, run: str, most: int, begun: bool) -> int:
    """Counts this attempt; returns how many are left, including it."""
    count = folder.read_json(f"{name}.attempt", Count) if begun else None
    if count is None or (count.inputs, count.run) != (inputs, run):
        count = Count(inputs, run, attempts=0)
    count = replace(count, attempts=count.attempts + 1)
    if count.attempts > most:
        return 0
    folder.put(f"{name}.attempt", json.dumps(asdict(count)).encode(), point="attempt")
    return most + 1 - count.attempts


def end(folder: Storage, name: str) -> None:
    """Removes the count."""
    folder.delete(f"{name}.attempt")


def of_shards(folder: Storage) -> set[int]:
    """Returns the row stage's shards with a count: a worker is at them, or died of them."""
    names = (entry.name for entry in folder.entries(FOLDER))
    return {int(name.partition(".")[0]) for name in names if name[0] != "."}  # `.DS_Store`, say


def fail(folder: Storage, shard: int, parents: dict[str, str], error: ClipmillError) -> Failure:
    """Sets a shard aside: stores the error as `<shard>.failed.json`."""
    found, where, do = error.args
    failure = Failure(shard, parents, isinstance(error, CrashedError), found, where, do)
    text = json.dumps(asdict(failure), sort_keys=True)
    folder.put(failure.name, text.encode(), point="failed")
    return failure


def forget(folder: Storage) -> None:
    """Deletes all counts, so that work that crashed its worker is tried again."""
    folder.delete_folder(FOLDER)
    for entry in folder.entries(below=True):
        if entry.name.endswith(".attempt") and not entry.name.startswith(f"{OUT}/"):
            folder.delete(entry.name)
