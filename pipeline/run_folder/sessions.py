"""What each run in a folder was made with, and how long it took: `sessions/<time>.json`.

Stored as a run ends: one that is killed leaves none.
"""

import contextlib
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from clipmill.metadata.sealed import put_sealed, read_sealed
from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import ClipmillError

FOLDER = "sessions"
PACKAGES = ("numpy", "pyarrow", "polars", "pillow", "torch", "ray")
SOURCES = Path(__file__).parents[3]  # a checkout, or where packages are installed


@dataclass(frozen=True, kw_only=True)
class Session:
    """One run: `seconds` from its begin to its end by the clock, on the machine that led it.

    `commit` is of a checkout, null for an installed package; `packages` have their versions.
    """

    recipe: str
    began: str  # 2026-11-26 14:03 UTC
    seconds: float
    clipmill: str
    commit: str | None
    python: str
    packages: dict[str, str]
    machine: str


@contextlib.contextmanager
def session(run: Storage, recipe: str) -> Iterator[None]:
    """Stores a session where what it is around ends by itself, well or not."""
    began = time.time()
    yield
    ended = time.time()
    made = Session(
        recipe=recipe,
        began=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(began)),
        seconds=round(ended - began, 1),
        clipmill=_version("clipmill") or "unknown",
        commit=commit(SOURCES),
        python=platform.python_version(),
        packages={name: found for name in PACKAGES if (found := _version(name))},
        machine=machine(),
    )
    name = time.strftime("%Y%m%dT%H%M%S", time.gmtime(began)) + f"{int(began % 1 * 1e6):06d}"
    with contextlib.suppress(OSError, ClipmillError):  # a full disk has been told by then
        put_sealed(run, f"{FOLDER}/{name}.json", asdict(made), point="session")


def sessions(run: Storage) -> tuple[Session, ...]:
    """Every session in a run folder that can be read, the first to begin first."""
    return tuple(session for _, session in _stored(run))


def ends(run: Storage) -> list[tuple[float, float]]:
    """Begin and end of each session, in seconds since 1970, the first to begin first."""
    found = []
    for name, session in _stored(run):
        with contextlib.suppress(ValueError):  # a file of another's
            began = datetime.strptime(name, "%Y%m%dT%H%M%S%f.json").replace(tzinfo=UTC).timestamp()
            found.append((began, began + session.seconds))
    return found


def _stored(run: Storage) -> list[tuple[str, Session]]:
    """Each session that can be read, under the name of its file."""
    found = []
    for entry in sorted(run.entries(FOLDER), key=lambda entry: entry.name):
        held = read_sealed(run, f"{FOLDER}/{entry.name}")
        with contextlib.suppress(msgspec.ValidationError):  # another version's
            found += [(entry.name, msgspec.convert(held, Session))] if held else []
    return found


def commit(folder: Path) -> str | None:
    """The commit that is checked out there, with a + where files differ from it."""
    if not (folder / ".git").exists():
        return None
    head = _git(folder, "rev-parse", "--short=12", "HEAD")
    return head and head + ("+" if _git(folder, "status", "--porcelain", "-uno") else "")


def machine() -> str:
    """Processor, CPUs that may be used, memory, system: no name of the machine."""
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
        said = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.stdout.strip() if said.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
