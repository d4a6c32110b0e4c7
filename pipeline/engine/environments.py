"""Makes Python environments for packages that conflict with ours, each once on a machine.

An environment is a folder in a cache, named by a digest of its packages, this Python and this
machine's platform. It is made under a temporary name, under a lock, and renamed when complete: a
killed worker leaves nothing that looks complete, and the next maker removes the remains.
"""

import contextlib
import fcntl
import os
import re
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from clipmill.metadata.fingerprint import digest
from clipmill.pipeline.engine.guard import end, start
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.stage import Environment

ADDRESS = re.compile(r"\w+://\S+|(?<=host=)'[^']*'")
OTHER_FILE = re.compile(r"^ +(\S+) from .*?^ +Got +(\w+)$", re.DOTALL | re.MULTILINE)  # pip's words
LOCK, PACKAGES, REQUIREMENTS = ".lock", "packages.txt", "requirements.txt"
UNFINISHED = ".new"


def python_of(environment: Environment) -> Path:
    """Returns a Python that has the packages: this one if it does, else one made in the cache.

    Raises StageError if a requirement has no hash, or with pip's own words if none can be made.
    """
    if python := made(environment):
        return python
    if loose := [line for line in environment.requirements if " --hash=sha256:" not in line]:
        do = "write --hash=sha256:… behind it, for each file that may be taken"
        raise StageError(f"no hash pins {loose[0]}", "the requirements of a Python", do)
    place = _place(environment)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with _locked(place):
            if not _python(place).exists():  # else another worker made it while we waited
                shutil.rmtree(place, ignore_errors=True)  # made of a Python that is gone
                _make(environment, place)
    except OSError as error:
        raise StageError(
            f"no Python can be made: {error.strerror or error}",
            f"the cache of environments {place.parent}",
            "name a folder on a disk of this machine with room: CLIPMILL_ENVIRONMENTS=…",
        ) from None
    return _python(place)


def made(environment: Environment) -> Path | None:
    """Returns a Python that has the packages already; None if one is to be made first."""
    if all(map(_is_here, environment.packages)) and not any(map(_is_here, environment.without)):
        return Path(sys.executable)
    python = _python(_place(environment))  # a link to the Python that made it
    return python if python.exists() else None


def all_made() -> dict[Path, str]:
    """Lists the environments in the cache: folder -> the packages in it."""
    files = sorted(cache_folder().glob(f"*/{PACKAGES}"))
    return {
        file.parent: ", ".join(file.read_text("utf-8").splitlines())
        for file in files
        if file.parent.suffix != UNFINISHED
    }


def cache_folder() -> Path:
    """Returns the folder of environments: $CLIPMILL_ENVIRONMENTS, else in the user's cache."""
    if chosen := os.environ.get("CLIPMILL_ENVIRONMENTS"):
        return Path(chosen).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser().absolute() / "clipmill" / "environments"


def _place(environment: Environment) -> Path:
    what = (environment.packages, environment.without, environment.requirements)
    key = [*map(sorted, what), sys.version, sysconfig.get_platform()]
    return cache_folder() / digest(key)[:16]


def _python(place: Path) -> Path:
    return place / "bin" / "python"


def _is_here(package: str) -> bool:
    from importlib import metadata  # imports email and zipfile, which few workers need

    from packaging.requirements import InvalidRequirement, Requirement

    try:
        requirement = Requirement(package)
        version = metadata.version(requirement.name)
    except (InvalidRequirement, metadata.PackageNotFoundError):
        return False  # a path or an address has no version to compare
    return requirement.url is None and requirement.specifier.contains(version, prereleases=True)


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Holds the lock of one environment's maker; removes what killed makers left."""
    with place.with_suffix(LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in place.parent.glob(f"{place.name}.*{UNFINISHED}"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def _make(environment: Environment, place: Path) -> None:
    new = Path(tempfile.mkdtemp(prefix=f"{place.name}.", suffix=UNFINISHED, dir=place.parent))
    try:
        _run([sys.executable, "-m", "venv", str(new)], new, environment)
        what = list(environment.packages)
        if environment.requirements:  # instead, as they pin all of it; pip takes them as a file
            (new / REQUIREMENTS).write_text("\n".join(environment.requirements), "utf-8")
            what = ["--no-deps", "--require-hashes", "--requirement", str(new / REQUIREMENTS)]
        pip = [str(_python(new)), "-m", "pip", "--quiet", "--no-input"]
        _run([*pip, "install", *what], new, environment)
        (new / PACKAGES).write_text("\n".join(environment.packages), encoding="utf-8")
        new.rename(place)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _run(command: Sequence[str], folder: Path, environment: Environment) -> None:
    """Runs a command to its end, or to the end of this process."""
    log = folder / "made.log"
    process = start(command, log, {"PYTHONPATH": ""})  # ours would hide the environment's packages
    try:
        code = process.wait()
    finally:
        end(process)
    if code:
        found, do = _fault(log.read_text(encoding="utf-8", errors="replace"), code)
        raise StageError(
            f"no Python with {', '.join(environment.packages)} can be made: {found}",
            f"`python -m {command[2]}`, for the cache of environments {folder.parent}",
            f"{do}; or install these packages beside clipmill, and that Python is used",
        )


def _fault(log: str, code: int) -> tuple[str, str]:
    """Returns pip's last error lines, without the addresses it reached for, and what to do."""
    if mismatch := OTHER_FILE.search(log):
        return (
            f"{mismatch[1]} has digest {mismatch[2][:12]}…, which is none of those known",
            "take it from the index where it was published (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL):"
            " another build or a changed file is not installed",
        )
    lines = log.splitlines()
    errors = [line.partition("ERROR: ")[2] for line in lines if line.startswith("ERROR: ")]
    texts = errors or lines[-1:] or [f"exit code {code}"]
    return (
        ADDRESS.sub("…", "; ".join(dict.fromkeys(texts[-2:]))),
        "see that pip reaches its index and that there is a wheel for"
        f" Python {sys.version_info.major}.{sys.version_info.minor} on this machine",
    )
