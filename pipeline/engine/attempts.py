"""Attempts at a piece of work, counted in storage before it starts: so a crash leaves its trace.

Success or a clean error takes the count away. Work that ends its worker three times within a run
fails. A run that was killed as a whole says nothing of the work in its hand, nor does a machine of
a cluster that goes away: then the count begins anew.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

from clipmill.metadata.damage import DamagedError
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
FOLDER = "attempts"  # of the shards of a row stage: they go all at once, in few requests
LOOK = "look for a crash in its native code or for too little memory"
MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class Count:
    """What `<name>.attempt` holds."""

    inputs: str
    run: str
    attempts: int  # of that run


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
    kept: bool = False,
    ended: str = "",
) -> T:
    """The result of work(number): tried a second and a third time while its error may pass.

    It is counted in `<name>.attempt`, anew for another digest of the inputs. CrashedError where
    fewer than `least` attempts are left, as the others ended their worker; that count stays.

    Where no end before can have been the work's own, `begun=False`: no count is looked for. Where
    `kept`, the count outlives a success: whoever hears of it takes it away, with others. `ended`
    says why the last worker was ended, where the executor did it.
    """
    if _begin(folder, name, inputs, run, most, begun) < least:
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
    if not kept:
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
    """How many attempts are left, this one among them; it is counted."""
    count = folder.read_json(f"{name}.attempt", Count) if begun else None
    if count is None or (count.inputs, count.run) != (inputs, run):
        count = Count(inputs, run, attempts=0)
    count = replace(count, attempts=count.attempts + 1)
    if count.attempts > most:
        return 0
    folder.put(f"{name}.attempt", json.dumps(asdict(count)).encode(), point="attempt")
    return most + 1 - count.attempts


def end(folder: Storage, name: str) -> None:
    """Takes the count away."""
    folder.delete(f"{name}.attempt")


def of_shards(folder: Storage) -> set[int]:
    """The shards of a row stage with a count: somebody works on them, or died doing so."""
    return {int(entry.name.partition(".")[0]) for entry in folder.entries(FOLDER)}


def fail(folder: Storage, shard: int, parents: dict[str, str], error: ClipmillError) -> Failure:
    """Sets a shard aside with its reason: `<shard>.failed.json`."""
    found, where, do = error.args
    failure = Failure(shard, parents, isinstance(error, CrashedError), found, where, do)
    text = json.dumps(asdict(failure), sort_keys=True)
    folder.put(failure.name, text.encode(), point="failed")
    return failure


def forget(folder: Storage) -> None:
    """Lets what crashed its worker be tried again."""
    folder.delete_folder(FOLDER)
    places = ["", *(name for name in folder.folders() if name.startswith("calls"))]
    for place in places:
        for below in [
            "",
            *(f"/{name}" for name in (folder.folders(place) if place else [])),
        ]:
            for entry in folder.entries(f"{place}{below}"):
                if entry.name.endswith(".attempt"):
                    folder.delete(f"{place}{below}/{entry.name}".lstrip("/"))
