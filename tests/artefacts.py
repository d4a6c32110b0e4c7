"""Folders that are made once for all processes of a test run and kept for the next: finished runs.

A folder's name holds the digest of all that made it. Tests read it where it lies; one that writes
there takes `linked`, one that changes bytes in place `copied`. A folder that was changed fails the
run, and is made anew by the next.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = tuple(ROOT / "clipmill" / name for name in ("metadata", "pipeline", "stages"))
LIBRARIES = ("numpy", "pyarrow", "polars", "torch")
KEPT = 2  # folders of a name: today's, and the one before an edit that may be taken back


class Artefacts:
    """Folders below `shelf`, each filled by the first process that asks for it."""

    def __init__(self, shelf: Path) -> None:
        self.shelf = shelf
        shelf.mkdir(parents=True, exist_ok=True)
        self.taken: set[Path] = set()

    def __call__(self, name: str, build: Callable[[Path], object], *more: Path) -> Path:
        """The folder that `build` filled.

        It is made anew where the packages change, the file that `build` stands in, or `more`. It
        is filled in its last place, as runs store paths; what a killed process left there goes.
        """
        folder = self.shelf / f"{name}-{key(self.shelf, Path(build.__code__.co_filename), *more)}"
        done = folder.with_suffix(".done")
        with self._held(name):
            if not done.exists() or changed(folder):
                done.unlink(missing_ok=True)
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                build(folder)
                for file in files_of(folder):
                    file.chmod(0o444)  # root may write all the same
                done.write_text(listing(folder))
                self._prune(name)
        self.taken.add(folder)
        return folder

    def check(self) -> None:
        """Fails where a folder that was taken has changed."""
        found = {folder.name: changed(folder) for folder in sorted(self.taken)}
        found = {name: files for name, files in found.items() if files}
        assert not found, f"a test changed these instead of a copy (tests/artefacts.py): {found}"

    @contextmanager
    def _held(self, name: str) -> Iterator[None]:
        with (self.shelf / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _prune(self, name: str) -> None:
        """Takes away all folders of a name but the last made."""
        made = [path for path in self.shelf.glob(f"{name}-{'?' * 16}")]
        for folder in sorted(made, key=lambda path: path.stat().st_mtime_ns)[:-KEPT]:
            folder.with_suffix(".done").unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)


def linked(folder: Path, to: Path) -> Path:
    """A copy to write to by rename, as runs do: its files are those of the folder, if they can."""

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:  # on another disk
            shutil.copy2(source, target)

    shutil.copytree(folder, to, copy_function=link)
    return to


def copied(folder: Path, to: Path) -> Path:
    """A copy of which every byte may change."""
    shutil.copytree(folder, to)
    for file in files_of(to):
        file.chmod(0o644)
    return to


def files_of(folder: Path) -> list[Path]:
    """The files in it and below, in order; none that Python or Numba compiled."""
    every = ((above, names) for above, _, names in os.walk(folder) if "__pycache__" not in above)
    return sorted(Path(above, name) for above, names in every for name in names)


def listing(folder: Path) -> str:
    """Name, size and time of each file."""
    stats = {file.relative_to(folder).as_posix(): file.stat() for file in files_of(folder)}
    return "\n".join(f"{it.st_size} {it.st_mtime_ns} {name}" for name, it in stats.items())


def changed(folder: Path) -> list[str]:
    """The first files that are not as they were made, or are new, or gone."""
    lines = (folder.with_suffix(".done").read_text(), listing(folder))
    before, now = (set(it.splitlines()) for it in lines)
    return sorted({line.split(" ", 2)[2] for line in before ^ now})[:5]


def key(shelf: Path, *more: Path) -> str:
    """The digest of all that a folder is made of, and of where it lies."""
    parts = [str(shelf), of_packages(), digest(more)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@cache
def of_packages() -> str:
    """The digest of this project's packages, and of what runs them."""
    runs = [sys.version, platform.node(), *map(version, LIBRARIES)]
    return " ".join([digest(PACKAGES), *runs])


def digest(paths: Iterable[Path]) -> str:
    """The digest of files, and of all files in folders: their names and bytes."""
    total = hashlib.sha256()
    for path in paths:
        for file in files_of(path) if path.is_dir() else [path]:
            data = file.read_bytes()
            total.update(f"{file.relative_to(path.parent)} {len(data)}\n".encode() + data)
    return total.hexdigest()
