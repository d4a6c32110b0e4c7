"""Folders on this machine's own disk: for what is on its way to storage, and for copies of it.

Each process has one for itself, and it goes with the process. Others are shared by processes that
work on one thing. A lock, which the kernel frees with its process, says that a folder is held. A
killed process leaves folders behind: whoever makes one next removes those that nobody holds, and
never one that a live process does.
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
LOST = (BlockingIOError, FileNotFoundError)  # a sweep was faster
_shared: dict[str, int] = {}  # descriptors that hold this process's shared folders, by name


def scratch_folder() -> Path:
    """This process's own; made again where another has removed it, as cleaners of /tmp do."""
    path = _made(os.getpid())  # a fork is another process
    if not path.is_dir():
        _made.cache_clear()
        path = _made(os.getpid())
    return path


def shared_scratch(name: str) -> Path | None:
    """One that the processes of this machine share; None where it cannot be had just now."""
    path = _path(name)
    if name in _shared and path.is_dir():
        return path
    _leave(name)
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        _shared[name] = _hold(path, fcntl.LOCK_SH)
    except OSError:
        return None
    atexit.register(_leave, name)
    return path


def leave_shared(but: Collection[str]) -> None:
    """Leaves the shared folders but these; the last to leave one removes it."""
    for name in _shared.keys() - set(but):
        _leave(name)


def remove_shared(name: str) -> None:
    """Removes a shared folder, whoever holds it."""
    shutil.rmtree(_path(name), ignore_errors=True)
    _leave(name)


def sweep_scratch() -> None:
    """Removes the folders of processes that are gone."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        _remove_if_free(path)


@functools.cache
def _made(pid: int) -> Path:
    sweep_scratch()
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX))
        with contextlib.suppress(FileNotFoundError):
            _hold(path, fcntl.LOCK_EX)
            atexit.register(_remove, path, pid)
            return path


def _path(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"{PREFIX}{name}"


def _hold(path: Path, how: int) -> int:
    """A descriptor that holds the folder until it is closed, or the process ends."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(folder, how | fcntl.LOCK_NB)
        held = os.fstat(folder)
        if os.path.samestat(held, path.stat()) and held.st_uid == os.geteuid():
            return folder  # anybody may have made a folder of that name in a shared /tmp
    except LOST:
        pass
    except OSError:
        return folder  # a disk without locks, where a sweep removes nothing either
    os.close(folder)
    raise FileNotFoundError(path)


def _leave(name: str) -> None:
    folder = _shared.pop(name, None)
    if folder is not None:
        os.close(folder)
        _remove_if_free(_path(name))


def _remove_if_free(path: Path) -> None:
    with contextlib.suppress(OSError):  # another's, or held
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(folder)


def _remove(path: Path, pid: int) -> None:
    if os.getpid() == pid:  # a fork has what is to be done at exit from its parent
        shutil.rmtree(path, ignore_errors=True)
