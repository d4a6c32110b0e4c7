"""The run's lock: a lease in `lock.json`, so that two runs do not work in one folder.

Exclusive on a local disk, where a dead holder's lock is taken over at once. Advisory on an object
store, where it lapses a minute after its holder stops renewing it. A holder that slept through its
lease, and whose lock another took, writes no more.
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
    """What `lock.json` holds."""

    owner: str
    host: str
    pid: int
    started: str
    expires: float

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@dataclass
class Hold:
    """The lock in one's hand, looked at again as often as it is renewed."""

    run: Storage
    owner: str
    every_s: float
    is_over: bool = field(default=False, init=False)  # what of us still runs writes no more
    good_until: float = field(default=0.0, init=False)  # by the wall clock, which sleep moves on

    def check(self) -> None:
        """LostLockError where it is another's by now."""
        now = time.time()
        if now < self.good_until and not self.is_over:
            return
        lease = self.run.read_json(NAME, Lease)
        if lease is None:  # an object store may renew it between telling its size and its bytes
            lease = self.run.read_json(NAME, Lease)
        if self.is_over or lease is None or lease.owner != self.owner:
            raise LostLockError(
                found=f"another run took this folder over: {lease or 'it has ended by now'}",
                where=str(self.run),
                do="nothing: this run slept while its lock lapsed, and the other does its work",
            )
        self.good_until = now + self.every_s


class Owned(Storage):
    """A folder of a run, for whoever holds its lock: nobody else puts or deletes in it."""

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
    """The run's folder, which is ours inside; RecipeError names who has it otherwise."""
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
    if not _is_of(run, owner):  # an object store, and another was as fast
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


def holder(run: Storage) -> Lease | None:
    """Who works in a run folder now, as far as can be seen from here: one request."""
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
        with contextlib.suppress(OSError):  # a missed renewal is made up by the next
            if run.is_local:
                _renew_file(run, owner)
            elif _is_of(run, owner):
                run.put(NAME, _lease(owner), point="lease")


def _renew_file(run: Storage, owner: str) -> None:
    """Writes into the very file that was looked at: whoever takes the lock over replaces it.

    We may be stopped between the look and the write; the write then goes to a file that has no
    name any more, and the other's lock stays. Of the bytes only the time's digits change.
    """
    with open(run.locate(NAME), "r+b") as file:
        if owner.encode() in file.read():
            reached("lease", NAME)
            file.seek(0)
            file.write(_lease(owner))
            file.truncate()


def _lease(owner: str) -> bytes:
    """As long for each renewal of a process: the time is in whole seconds."""
    pid = os.getpid()
    started = _process(pid)[1]
    expires = math.ceil(time.time() + LEASE_S)
    lease = Lease(owner, socket.gethostname(), pid, started, expires)
    return json.dumps(asdict(lease)).encode()


def _is_of(run: Storage, owner: str) -> bool:
    lease = run.read_json(NAME, Lease)
    return lease is not None and lease.owner == owner


def _is_alive(pid: int, started: str) -> bool:
    """Whether that very process lives: a pid alone may be another's by now."""
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
    """A process's state, and when it began in ticks since boot; empty where nothing tells."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return "", ""
    fields = stat.rpartition(")")[2].split()
    return fields[0], fields[19]
