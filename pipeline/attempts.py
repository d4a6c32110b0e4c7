"""Attempts, counted in storage before the work starts, so that what kills its worker is found.

A crash leaves the count behind; success or a clean error takes it away. Within a run a shard that
ends its worker three times is set aside. A run that was killed as a whole says less: it takes ten
of those, with the same shard in hand each time.
"""

import json
from dataclasses import asdict, dataclass, replace

from metadata.record import Failure
from metadata.storage import Storage
from pipeline.errors import ClipmillError

MAX_ATTEMPTS = 3
MAX_RUNS = 10


@dataclass(frozen=True)
class Count:
    """What `<name>.attempt` holds."""

    inputs: str
    run: str
    attempts: int  # of that run
    runs: int


def begin(folder: Storage, name: str, inputs: str, run: str) -> int:
    """How many attempts are left, this one among them; it is counted. `run` tells runs apart.

    A changed digest of the inputs starts the count again.
    """
    held = folder.read_json(f"{name}.attempt", Count)
    if held is None or held.inputs != inputs:
        held = Count(inputs, run, attempts=0, runs=1)
    elif held.run != run:
        held = Count(inputs, run, attempts=0, runs=held.runs + 1)
    held = replace(held, attempts=held.attempts + 1)
    if held.attempts > MAX_ATTEMPTS or held.runs > MAX_RUNS:
        return 0
    folder.put(f"{name}.attempt", json.dumps(asdict(held)).encode(), point="attempt")
    return MAX_ATTEMPTS + 1 - held.attempts


def end(folder: Storage, name: str) -> None:
    """Takes the count away: the work is done, or failed in a way that says why."""
    folder.delete(f"{name}.attempt")


def fail(
    folder: Storage, shard: int, parents: dict[str, str], error: ClipmillError, crashed: bool
) -> Failure:
    """Sets a shard aside with its reason: `<shard>.failed.json`."""
    found, where, do = error.args
    failure = Failure(shard, parents, crashed, found, where, do)
    text = json.dumps(asdict(failure), sort_keys=True)
    folder.put(failure.name, text.encode(), point="failed")
    return failure


def crash_error(what: str, folder: Storage) -> ClipmillError:
    """The words for work that ended its worker each time."""
    return ClipmillError(
        f"{what} ended its worker {MAX_ATTEMPTS} times",
        str(folder),
        "look for a crash in its native code or for too little memory,"
        " then run again with --retry crashed",
    )


def forget(folder: Storage) -> None:
    """Lets what crashed its worker be tried again."""
    places = ["", *(name for name in folder.folders() if name.startswith("calls"))]
    for place in places:
        for below in [
            "",
            *(f"/{name}" for name in (folder.folders(place) if place else [])),
        ]:
            for entry in folder.entries(f"{place}{below}"):
                if entry.name.endswith(".attempt"):
                    folder.delete(f"{place}{below}/{entry.name}".lstrip("/"))
