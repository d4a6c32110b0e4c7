"""The run's lock: a lease in `lock.json`, so that two runs do not work in one folder.

Exclusive on a local disk, where a dead holder's lock is taken over at once. Advisory on an object
store, where it lapses a minute after its holder stops renewing it.
"""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from metadata.storage import Storage
from pipeline.errors import RecipeError

NAME = "lock.json"
LEASE_S = 60.0


@contextlib.contextmanager
def held(run: Storage) -> Iterator[None]:
    """The run is ours inside; RecipeError names who has it otherwise."""
    owner = uuid.uuid4().hex
    _take(run, owner)
    stop = threading.Event()
    renewal = threading.Thread(target=_renew, args=(run, owner, stop), daemon=True)
    renewal.start()
    try:
        yield
    finally:
        stop.set()
        renewal.join()
        if _owner(run) == owner:
            run.delete(NAME)


def _take(run: Storage, owner: str) -> None:
    with _alone(run):
        _refuse_if_live(run)
        run.put(NAME, _lease(owner).encode(), point="lock")
    if _owner(run) != owner:  # an object store, and another was as fast
        _refuse_if_live(run)


@contextlib.contextmanager
def _alone(run: Storage) -> Iterator[None]:
    """Whoever looks for a lock here does it alone; on an object store nothing makes sure of it."""
    if not run.is_local:
        yield
        return
    os.makedirs(run.path, exist_ok=True)
    folder = os.open(run.path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a network disk without locks
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _refuse_if_live(run: Storage) -> None:
    text = run.read_if_there(NAME)
    try:
        lease = json.loads(text) if text else None
    except ValueError:  # no lock of ours
        return
    if lease is None or lease["expires"] < time.time():
        return
    if lease["host"] == socket.gethostname() and not _alive(lease["pid"], lease["started"]):
        return
    raise RecipeError(
        found=f"another run works here: process {lease['pid']} on {lease['host']}",
        where=str(run),
        do="wait for it, stop it, or use another --out;"
        f" a dead run's lock lapses in {LEASE_S:.0f} s",
    )


def _renew(run: Storage, owner: str, stop: threading.Event) -> None:
    while not stop.wait(LEASE_S / 4):
        with contextlib.suppress(OSError):  # a missed renewal is made up by the next
            if _owner(run) == owner:
                run.put(NAME, _lease(owner).encode(), point="lease")


def _lease(owner: str) -> str:
    pid = os.getpid()
    return json.dumps(
        {
            "owner": owner,
            "host": socket.gethostname(),
            "pid": pid,
            "started": _started(pid),
            "expires": time.time() + LEASE_S,
        }
    )


def _owner(run: Storage) -> str | None:
    try:
        return str(json.loads(run.read_if_there(NAME) or b"{}").get("owner"))
    except ValueError:
        return None


def _alive(pid: int, started: str) -> bool:
    """Whether that very process lives: a pid alone may be another's by now."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not started or _started(pid) == started


def _started(pid: int) -> str:
    """When a process began, in ticks since boot; empty where the system doesn't tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]
