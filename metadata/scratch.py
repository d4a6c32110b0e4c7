"""A folder on this machine's own disk for what is on its way to storage: one for each process.

It goes with its process. A killed process leaves it behind, unlocked by the kernel: whoever makes
one next removes those that nobody holds, and never one that a live process does.
"""

import atexit
import contextlib
import fcntl
import functools
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "clipmill-scratch-"


def scratch_folder() -> Path:
    """This process's own."""
    return _made(os.getpid())  # a fork is another process


def sweep_scratch() -> None:
    """Removes the folders of processes that are gone."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another's, or held
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(folder)


@functools.cache
def _made(pid: int) -> Path:
    sweep_scratch()
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX))
        if _is_held(path):
            atexit.register(_remove, path, pid)
            return path


def _is_held(path: Path) -> bool:
    """Holds the folder until this process ends; false where a sweep was faster."""
    try:
        folder = os.open(path, os.O_RDONLY)  # never closed: its lock goes when the process does
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(folder), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError:
        return True  # a disk without locks, where a sweep removes nothing either


def _remove(path: Path, pid: int) -> None:
    if os.getpid() == pid:  # a fork has what is to be done at exit from its parent
        shutil.rmtree(path, ignore_errors=True)
