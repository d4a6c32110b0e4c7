"""The run's lock: a lease in `lock.json`, so that two runs do not work in one folder.

On a local disk a dead holder's lock is taken over at once, on an object store a minute after its
last renewal. Of two runs that take it at the same time one gets it; on stores that fenced.py does
not serve, both may, for 15 s. A holder that slept through its lease and lost the lock writes no
more; S3 itself refuses what was under way.
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
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from clipmill.metadata.faults import reached
from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import LostLockError, RecipeError
from clipmill.pipeline.executors.machine import process
from clipmill.pipeline.run_folder.fenced import Fenced, fenced

NAME = "lock.json"
LEASE_S = 60.0
LOOKS = 8  # at a lease that is about to lapse: two renewals are due meanwhile


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
        """Raises LostLockError if the lock is released, another's or, on a store, not renewed."""
        for _ in range(LOOKS):
            now = time.time()
            is_recent = 0 < self.good_until - now <= self.every_s  # a clock may be set back
            if is_recent and not self.is_over:
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
            last = math.inf if self.run.is_local else lease.expires - self.every_s
            self.good_until = min(now + self.every_s, last)
            if last > now:
                return
            time.sleep(self.every_s / 4)  # the machine has slept, perhaps
        raise LostLockError(
            found=f"the lock has lapsed: {lease} has not renewed it",
            where=str(self.run),
            do="see that it lives and reaches the store, then run again",
        )

    def left_s(self) -> int:
        """Returns how many seconds a request may take to reach the store.

        They begin with a whole second, so it is one more; `check` leaves 15 until the lease ends.
        """
        self.check()
        return max(0, math.ceil(self.good_until - time.time())) + 1


class Owned(Storage):
    """A run's folder for the holder of its lock, checked before each change."""

    def __init__(self, uri: str, hold: Hold) -> None:
        super().__init__(uri)
        self.hold = hold
        self.fs = fenced(self.uri, self.fs, hold.left_s) or self.fs

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

    def sweep(self, besides: Collection[str] = ()) -> None:
        self.hold.check()
        super().sweep(besides)

    def _upload(self, path: Path, name: str) -> None:
        if isinstance(self.fs, Fenced):
            self.fs.upload(path, self.locate(name))
        else:
            super()._upload(path, name)


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
        with contextlib.suppress(LostLockError):
            Owned(run.uri, Hold(run, owner, LEASE_S / 4)).delete(NAME)


def _take(run: Storage, owner: str) -> None:
    with _alone(run), contextlib.suppress(FileExistsError):
        _, put = _found(run)
        _refuse_if_live(run)
        put(_lease(owner), point="lock")
    lease = run.read_json(NAME, Lease)
    if lease is None or lease.owner != owner:  # another took it too, on an object store
        _refuse_if_live(run)


def _found(run: Storage) -> tuple[bytes, Callable[..., None]]:
    """Returns the stored lease, and a function that stores another in its place.

    On S3 that raises FileExistsError where the lease is another by now.
    """
    store = fenced(run.uri, run.fs, lambda: math.ceil(LEASE_S))
    if store is None:
        found = None if run.is_local else run.read_if_there(NAME)
        return found or b"", partial(run.put, NAME)
    lease, etag = store.get(run.locate(NAME)) or (b"", None)

    def put(next_lease: bytes, point: str) -> None:
        reached("write", NAME)
        store.replace(run.locate(NAME), next_lease, etag)
        reached(point, NAME)

    return lease, put


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
        f" a dead run's lock, {run}/{NAME}, lapses in {LEASE_S:.0f} s",
    )


def _renew(run: Storage, owner: str, stop: threading.Event) -> None:
    while not stop.wait(LEASE_S / 4):
        with contextlib.suppress(OSError):  # the next renewal makes up for a missed one
            if run.is_local:
                _renew_file(run, owner)
                continue
            found, put = _found(run)
            if owner.encode() in found:
                put(_lease(owner), point="lease")


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
    started = process(pid)[1]
    expires = math.ceil(time.time() + LEASE_S)
    lease = Lease(owner, socket.gethostname(), pid, started, expires)
    return json.dumps(asdict(lease)).encode()


def _is_alive(pid: int, started: str) -> bool:
    """Returns whether the process started then is alive; its pid may be reused by another."""
    state, began = process(pid)
    if state:
        return state not in ("Z", "X") and started in ("", began)
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
