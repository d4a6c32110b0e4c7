"""Turns exceptions in a stage's work into errors that say what, where and what to do."""

import contextlib
import errno
import os
import re
import shutil
import socket
import traceback
from collections.abc import Iterator
from pathlib import Path

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.scratch import scratch_folder
from clipmill.metadata.storage import KEYS, Storage, wants_keys
from clipmill.pipeline.errors import ClipmillError, RetryableError, ShardError, StageError
from clipmill.pipeline.extras import install, missing

FULL_STORE = re.compile(r"QUOTA_?EXCEEDED|STORAGE_?FULL|HTTP status 507", re.IGNORECASE)


@contextlib.contextmanager
def explained(place: str, folder: Storage) -> Iterator[None]:
    """Turns every exception within into a ClipmillError; a DamagedError stays one."""
    try:
        yield
    except (ClipmillError, DamagedError):
        raise
    except OSError as error:
        raise storage_error(error, place, folder) from error
    except ModuleNotFoundError as error:
        if not install(error.name or ""):
            raise ShardError(*raised(error, place), "install it, or mend the stage") from error
        raise StageError(*missing(error.name, place).args) from error
    except MemoryError as error:
        found = f"too little memory: {error}".removesuffix(": ")
        do = "give fewer workers (`--workers 2`), or bound what a row takes, then run again"
        raise ShardError(found, raised(error, place)[1], do) from error
    except Exception as error:
        do = "mend the stage; a row that it can give no value gets a reason"
        raise ShardError(*raised(error, place), do) from error


def raised(error: Exception, place: str) -> tuple[str, str]:
    """Returns the text of an unexpected exception, and its place with the line that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error}", f"{place}, {Path(last.filename).name}:{last.lineno}"


def storage_error(error: OSError, place: str, folder: Storage) -> ClipmillError:
    """Returns StageError for a full disk, blocking folder or refused keys; else RetryableError."""
    if isinstance(error, IsADirectoryError):
        way = error.filename2 or error.filename
        return StageError(f"a folder where a file belongs: {way}", place, "delete it and run again")
    if wants_keys(error):
        return StageError(f"the store refuses: {error}", place, KEYS)
    do = "free space there, then run again: what is stored stays"
    if FULL_STORE.search(str(error)):
        return StageError(f"the store is full: {error}", place, do)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        full = error.filename2 or error.filename or _fullest(folder)  # of a copy, its destination
        return StageError(f"the disk is full: {error.strerror}", f"{full}, {place}", do)
    return RetryableError(f"{type(error).__name__}: {error}", place, "mend or wait, then run again")


def _fullest(folder: Storage) -> str:
    """Returns the place with the least room of those written to: a failed write names no file."""
    places = [str(scratch_folder()), *([folder.path] if folder.is_local else [])]
    by_disk = {os.stat(place).st_dev: place for place in places}  # its room changes as we look
    full = min(by_disk.values(), key=lambda place: shutil.disk_usage(place).free)
    return full if full == folder.path else f"{full} on {socket.gethostname()}"
