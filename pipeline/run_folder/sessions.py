"""Stores the versions, machine and duration of each run: `sessions/<time>.json`.

A session is stored as its run ends; a killed run leaves none.
"""

import contextlib
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from clipmill.metadata.sealed import put_sealed, read_sealed
from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import ClipmillError
from clipmill.pipeline.run_folder.spent import Spent

FOLDER = "sessions"
PACKAGES = ("numpy", "pyarrow", "polars", "pillow", "torch", "ray")
SOURCES = Path(__file__).parents[3]  # a checkout, or site-packages


@dataclass(frozen=True, kw_only=True)
class Session:
    """One run, as its driver saw it; `seconds` are wall-clock time.

    `commit` is that of a checkout, None for an installed package; `packages` have their versions.
    """

    recipe: str
    began: str  # 2026-11-26 14:03 UTC
    seconds: float
    clipmill: str
    commit: str | None
    python: str
    packages: dict[str, str]
    machine: str
    spent: dict[str, Spent] = field(default_factory=dict)  # by the stage's folder


@contextlib.contextmanager
def session(run: Storage, recipe: str) -> Iterator[dict[str, Spent]]:
    """Yields the work by stage, to be filled; stores a session when the body ends well."""
    began, spent = time.time(), dict[str, Spent]()
    yield spent
    ended = time.time()
    entry = Session(
        recipe=recipe,
        began=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(began)),
        seconds=round(ended - began, 1),
        clipmill=_version("clipmill") or "unknown",
        commit=commit(SOURCES),
        python=platform.python_version(),
        packages={name: number for name in PACKAGES if (number := _version(name))},
        machine=machine(),
        spent=spent,
    )
    name = time.strftime("%Y%m%dT%H%M%S", time.gmtime(began)) + f"{int(began % 1 * 1e6):06d}"
    with contextlib.suppress(OSError, ClipmillError):  # the run has reported a full disk
        put_sealed(run, f"{FOLDER}/{name}.json", asdict(entry), point="session")


def sessions(run: Storage) -> tuple[Session, ...]:
    """Returns the readable sessions of a run folder, by their start."""
    return tuple(session for _, session in _stored(run))


def ends(run: Storage) -> list[tuple[float, float]]:
    """Returns start and end of each session in seconds since 1970, by start."""
    times = []
    for name, session in _stored(run):
        with contextlib.suppress(ValueError):  # not our file
            began = datetime.strptime(name, "%Y%m%dT%H%M%S%f.json").replace(tzinfo=UTC).timestamp()
            times.append((began, began + session.seconds))
    return times


def _stored(run: Storage) -> list[tuple[str, Session]]:
    """Reads the sessions that can be read, with their file names."""
    stored = []
    for entry in sorted(run.entries(FOLDER), key=lambda entry: entry.name):
        value = read_sealed(run, f"{FOLDER}/{entry.name}")
        with contextlib.suppress(msgspec.ValidationError):  # of another version
            stored += [(entry.name, msgspec.convert(value, Session))] if value else []
    return stored


def commit(folder: Path) -> str | None:
    """Returns the commit checked out in a folder, with a + if files differ; else None."""
    if not (folder / ".git").exists():
        return None
    head = _git(folder, "rev-parse", "--short=12", "HEAD")
    return head and head + ("+" if _git(folder, "status", "--porcelain", "-uno") else "")


def machine() -> str:
    """Describes processor, usable CPUs, memory and system, without the machine's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model = models[0] if models else platform.machine()
    return f"{model}, {cpus} CPUs, {memory_gb:.0f} GB, {platform.system()}"


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
