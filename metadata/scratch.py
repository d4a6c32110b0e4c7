"""Scratch folders on this machine's disk: for data on its way to storage, and copies of it.

Each process has a folder of its own, removed when it ends. Others are shared by processes that
work on one thing. A folder in use is locked; the kernel frees the lock with its process. A killed
process leaves folders behind: the next process to make one removes those that are not locked.
"""

import atexit
import contextlib
import fcntl
import functools
import os
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path

PREFIX = "clipmill-scratch-"
LOST = (BlockingIOError, FileNotFoundError)  # another process removed it first
_locked: dict[str, int] = {}  # name to the descriptor that locks a shared folder


def scratch_folder() -> Path:
    """Returns this process's folder; makes it again if removed, as cleaners of /tmp do."""
    path = _own_folder(os.getpid())  # a fork is another process
    if not path.is_dir():
        _own_folder.cache_clear()
        path = _own_folder(os.getpid())
    return path


def shared_scratch(name: str) -> Path | None:
    """Returns a folder that the machine's processes share; None if it cannot be locked now."""
    path = _path(name)
    if name in _locked and path.is_dir():
        return path
    _unlock(name)
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        _locked[name] = _lock(path, fcntl.LOCK_SH)
    except OSError:
        return None
    atexit.register(_unlock, name)
    return path


def leave_shared(but: Collection[str]) -> None:
    """Leaves all shared folders except those of `but`; the last process to leave one removes it."""
    for name in _locked.keys() - set(but):
        _unlock(name)


def remove_shared(name: str) -> None:
    """Removes a shared folder, even if other processes use it."""
    shutil.rmtree(_path(name), ignore_errors=True)
    _unlock(name)


def sweep_scratch() -> None:
    """Removes the folders of processes that have ended."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        _remove_if_free(path)


@functools.cache
def _own_folder(pid: int) -> Path:
    sweep_scratch()
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX))
        with contextlib.suppress(FileNotFoundError):
            _lock(path, fcntl.LOCK_EX)
            atexit.register(_remove, path, pid)
            return path


def _path(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"{PREFIX}{name}"


def _lock(path: Path, lock: int) -> int:
    """Returns a descriptor that locks the folder until it is closed or the process ends."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(folder, lock | fcntl.LOCK_NB)
        opened = os.fstat(folder)
        # In a shared /tmp another user may own a folder of that name.
        if os.path.samestat(opened, path.stat()) and opened.st_uid == os.geteuid():
            return folder
    except LOST:
        pass
    except OSError:
        return folder  # a disk without locks: sweeps remove nothing there either
    os.close(folder)
    raise FileNotFoundError(path)


def _unlock(name: str) -> None:
    folder = _locked.pop(name, None)
    if folder is not None:
        os.close(folder)
        _remove_if_free(_path(name))


def _remove_if_free(path: Path) -> None:
    with contextlib.suppress(OSError):  # another user's, or locked
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(folder)


def _remove(path: Path, pid: int) -> None:
    if os.getpid() == pid:  # a fork inherits its parent's exit handlers
        shutil.rmtree(path, ignore_errors=True)
