"""The run's lock: a lease in `lock.json`, so that two runs do not work in one folder.

On a local disk it is exclusive, and a dead holder's lock is taken over at once. On an object store
it is advisory, and lapses a minute after its last renewal. A holder that slept through its lease
and lost the lock writes no more.
"""

import contextlib
import fcntl
import json
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clipmill.metadata.faults import reached
from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import LostLockError, RecipeError

NAME = "lock.json"
LEASE_S = 60.0


@dataclass(frozen=True)
class Lease:
    """The content of `lock.json`."""

    owner: str
    host: str
    pid: int
    started: str
    expires: float

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@dataclass
class Hold:
    """A lock that this run holds, read again as often as it is renewed."""

    run: Storage
    owner: str
    every_s: float
    is_over: bool = field(default=False, init=False)  # released: threads that go on must not write
    good_until: float = field(default=0.0, init=False)  # wall clock, which goes on during sleep

    def check(self) -> None:
        """Raises LostLockError if the lock is released or another's."""
        now = time.time()
        if now < self.good_until and not self.is_over:
            return
        lease = self.run.read_json(NAME, Lease)
        if lease is None:  # a renewal between two requests of one read makes the read fail
            lease = self.run.read_json(NAME, Lease)
        if self.is_over or lease is None or lease.owner != self.owner:
            raise LostLockError(
                found=f"another run took this folder over: {lease or 'it has ended by now'}",
                where=str(self.run),
                do="nothing: this run slept while its lock lapsed, and the other does its work",
            )
        self.good_until = now + self.every_s


class Owned(Storage):
    """A run's folder for the holder of its lock, checked before each change."""

    def __init__(self, uri: str, hold: Hold) -> None:
        super().__init__(uri)
        self.hold = hold

    def __reduce__(self) -> tuple[Any, ...]:
        return Owned, (self.uri, self.hold)

    def child(self, name: str) -> "Owned":
        return Owned(super().child(name).uri, self.hold)

    def commit(self, path: Path, name: str, point: str = "rename") -> None:
        self.hold.check()
        super().commit(path, name, point)

    def put_copy(self, name: str, of: Storage, there: str) -> None:
        self.hold.check()
        super().put_copy(name, of, there)

    def delete(self, name: str) -> None:
        self.hold.check()
        super().delete(name)

    def delete_folder(self, name: str) -> None:
        self.hold.check()
        super().delete_folder(name)

    def sweep(self, folder: str = "") -> None:
        self.hold.check()
        super().sweep(folder)


@contextlib.contextmanager
def held(run: Storage) -> Iterator[Owned]:
    """Locks the run's folder, and yields it; raises RecipeError with the holder's name."""
    owner = uuid.uuid4().hex
    _take(run, owner)
    stop = threading.Event()
    renewal = threading.Thread(target=_renew, args=(run, owner, stop), daemon=True)
    renewal.start()
    hold = Hold(run, owner, LEASE_S / 4)
    try:
        yield Owned(run.uri, hold)
    finally:
        hold.is_over = True
        stop.set()
        renewal.join()
        if _is_of(run, owner):
            run.delete(NAME)


def _take(run: Storage, owner: str) -> None:
    with _alone(run):
        _refuse_if_live(run)
        run.put(NAME, _lease(owner), point="lock")
    if not _is_of(run, owner):  # another took it at the same time, on an object store
        _refuse_if_live(run)


@contextlib.contextmanager
def _alone(run: Storage) -> Iterator[None]:
    """Excludes other processes while the lock is taken; on an object store nothing can."""
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


def holder(run: Storage) -> Lease | None:
    """Returns the lease of a live run, in one request; None if expired or its process is gone."""
    lease = run.read_json(NAME, Lease)
    if lease is None or lease.expires < time.time():
        return None
    if lease.host == socket.gethostname() and not _is_alive(lease.pid, lease.started):
        return None
    return lease


def _refuse_if_live(run: Storage) -> None:
    lease = holder(run)
    if lease is None:
        return
    raise RecipeError(
        found=f"another run works here: {lease}",
        where=str(run),
        do="wait for it, stop it, or use another --out;"
        f" a dead run's lock lapses in {LEASE_S:.0f} s",
    )


def _renew(run: Storage, owner: str, stop: threading.Event) -> None:
    while not stop.wait(LEASE_S / 4):
        with contextlib.suppress(OSError):  # the next renewal makes up for a missed one
            if run.is_local:
                _renew_file(run, owner)
            elif _is_of(run, owner):
                run.put(NAME, _lease(owner), point="lease")


def _renew_file(run: Storage, owner: str) -> None:
    """Renews the lease in place, within the file that was just read.

    A take-over replaces the file: if it happens between reading and writing, we write to a file
    without a name, and the other's lock stays. Only the digits of the time change.
    """
    with open(run.locate(NAME), "r+b") as file:
        if owner.encode() in file.read():
            reached("lease", NAME)
            file.seek(0)
            file.write(_lease(owner))
            file.truncate()


def _lease(owner: str) -> bytes:
    """Returns a new lease, of the same length at each renewal as times are whole seconds."""
    pid = os.getpid()
    started = _process(pid)[1]
    expires = math.ceil(time.time() + LEASE_S)
    lease = Lease(owner, socket.gethostname(), pid, started, expires)
    return json.dumps(asdict(lease)).encode()


def _is_of(run: Storage, owner: str) -> bool:
    lease = run.read_json(NAME, Lease)
    return lease is not None and lease.owner == owner


def _is_alive(pid: int, started: str) -> bool:
    """Returns whether the process started then is alive; its pid may be reused by another."""
    state, began = _process(pid)
    if state:
        return state not in ("Z", "X") and started in ("", began)
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _process(pid: int) -> tuple[str, str]:
    """Returns a process's state and start in ticks since boot; empty strings without /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return "", ""
    fields = stat.rpartition(")")[2].split()
    return fields[0], fields[19]
