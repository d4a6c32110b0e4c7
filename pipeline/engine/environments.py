"""Other Pythons, for packages that do not get along with ours: each made once on a machine.

An Environment has a folder of its own in a cache, named by a digest of its packages, this Python
and this machine's kind. It is made beside its place, under a lock, and renamed when whole: a killed
worker leaves nothing that looks like one, and whoever makes it next removes what is left.
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
from clipmill.pipeline.engine.guarded import end, start
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.stage import Environment

ADDRESS = re.compile(r"\w+://\S+|(?<=host=)'[^']*'")
LOCK, PACKAGES = ".lock", "packages.txt"
WANTED, VERSIONS = "requirements.txt", "constraints.txt"  # as pip is asked


def python_of(environment: Environment) -> Path:
    """A Python that has the packages: this one where it does, else one made in the cache.

    StageError with pip's own words where it cannot be made.
    """
    if found := made(environment):
        return found
    place = _place(environment)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with _locked(place):
            if not place.is_dir():  # another worker has made it while we waited
                _make(environment, place)
    except OSError as error:
        raise StageError(
            f"no Python can be made there: {error.strerror or error}",
            f"the cache of environments {place.parent}",
            "name a folder on a disk of this machine with room: CLIPMILL_ENVIRONMENTS=…",
        ) from None
    return _python(place)


def made(environment: Environment) -> Path | None:
    """The Python that has the packages already; None where one is to be made first."""
    if all(map(_is_here, environment.packages)) and not any(map(_is_here, environment.without)):
        return Path(sys.executable)
    place = _place(environment)
    return _python(place) if place.is_dir() else None


def all_made() -> dict[Path, str]:
    """Every environment in the cache: its folder, and the packages it was made of."""
    files = sorted(cache_folder().glob(f"*/{PACKAGES}"))
    return {file.parent: ", ".join(file.read_text("utf-8").splitlines()) for file in files}


def cache_folder() -> Path:
    """Where environments are kept: $CLIPMILL_ENVIRONMENTS, else in the user's cache."""
    if chosen := os.environ.get("CLIPMILL_ENVIRONMENTS"):
        return Path(chosen).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser().absolute() / "clipmill" / "environments"


def _place(environment: Environment) -> Path:
    packages = sorted(environment.packages)
    without = sorted(environment.without)  # none: the name that it had before there was any
    more = [*without, *sorted(environment.hashes), *sorted(environment.versions)]
    of = [packages, environment.with_dependencies, *more, sys.version, sysconfig.get_platform()]
    return cache_folder() / digest(of)[:16]


def _python(place: Path) -> Path:
    return place / "bin" / "python"


def _is_here(package: str) -> bool:
    from importlib import metadata  # with email and zipfile, which few workers need

    from packaging.requirements import InvalidRequirement, Requirement

    try:
        wanted = Requirement(package)
        version = metadata.version(wanted.name)
    except (InvalidRequirement, metadata.PackageNotFoundError):
        return False  # a path or an address is nothing to compare with
    return wanted.url is None and wanted.specifier.contains(version, prereleases=True)


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    """One maker at a time, on this machine; what killed ones left is removed."""
    with place.with_suffix(LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in place.parent.glob(f"{place.name}.*.new"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def _make(environment: Environment, place: Path) -> None:
    new = Path(tempfile.mkdtemp(prefix=f"{place.name}.", suffix=".new", dir=place.parent))
    try:
        _run([sys.executable, "-m", "venv", str(new)], new, environment)
        only = [] if environment.with_dependencies else ["--no-deps"]
        pip = [str(_python(new)), "-m", "pip", "--quiet", "--no-input"]
        wanted = list(environment.packages)
        if environment.hashes:  # which pip takes from a file alone
            known = " ".join(f"--hash=sha256:{one}" for one in environment.hashes)
            (new / WANTED).write_text("\n".join(f"{one} {known}" for one in wanted), "utf-8")
            wanted = ["--require-hashes", "--requirement", str(new / WANTED)]
        if environment.versions:
            (new / VERSIONS).write_text("\n".join(environment.versions), "utf-8")
            wanted += ["--constraint", str(new / VERSIONS)]
        _run([*pip, "install", *only, *wanted], new, environment)
        if environment.without:  # pip has no way to leave out what a package asks for
            _run([*pip, "uninstall", "--yes", *environment.without], new, environment)
        lines = [*environment.packages, *(f"without {one}" for one in environment.without)]
        (new / PACKAGES).write_text("\n".join(lines), encoding="utf-8")
        new.rename(place)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _run(command: Sequence[str], folder: Path, environment: Environment) -> None:
    """Runs a command to its end, which comes with the end of this process at the latest."""
    log = folder / "made.log"
    process = start(command, log, {"PYTHONPATH": ""})  # ours would hide what is in there
    try:
        code = process.wait()
    finally:
        end(process)
    if code:
        raise StageError(
            f"no Python with {', '.join(environment.packages)} can be made: {_said(log, code)}",
            f"`python -m {command[2]}`, for the cache of environments {folder.parent}",
            "see that pip reaches its index and that there is a wheel for"
            f" Python {sys.version_info.major}.{sys.version_info.minor} on this machine;"
            " or install these packages beside clipmill, and that Python is used",
        )


def _said(log: Path, code: int) -> str:
    """What pip says is wrong, without the addresses that it asked."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line.partition("ERROR: ")[2] for line in lines if line.startswith("ERROR: ")]
    said = errors or lines[-1:] or [f"exit code {code}"]
    return ADDRESS.sub("…", "; ".join(dict.fromkeys(said[-2:])))
