"""Fetches published packages by their own clients, and reads their files into memory.

Packages stay packed in a cache, $CLIPMILL_CACHE or ~/.cache/clipmill/packages.
"""

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from posixpath import dirname, join, normpath

from clipmill.pipeline.errors import StageError

OUTSIDE = ("..", "/")  # beginnings of a path that leads out of a package
Wanted = Callable[[str], bool]


def npm_files(name: str, version: str, is_wanted: Wanted) -> dict[str, bytes]:
    """Fetches a package by `npm pack`; returns wanted files by path below its root."""
    file = _cached(
        f"{name.strip('@').replace('/', '-')}-{version}.tgz",
        ["npm", "pack", f"{name}@{version}", "--silent", "--ignore-scripts"],
        if_missing="install Node.js, which brings npm",
    )
    members: dict[str, bytes] = {}
    with tarfile.open(file, "r:gz") as tar:
        for entry in tar:  # a link could name a file outside the package
            path = entry.name.partition("/")[2]
            if entry.isreg() and is_wanted(path) and (member := tar.extractfile(entry)):
                members[path] = member.read()
    return members


def debian_files(name: str, is_wanted: Wanted) -> dict[str, bytes]:
    """Fetches a Debian package by `apt-get download`; returns wanted files by path below the root.

    The version is the distribution's; nothing is installed.
    """
    files = debian_stream(name, is_wanted)
    return {path: file for path, file in files if not isinstance(file, str)}


def debian_stream(name: str, is_wanted: Wanted) -> Iterator[tuple[str, bytes | str]]:
    """Yields path and bytes of a Debian package's wanted files, as archived; of a link, its target.

    No more than a file is in memory, none on disk. A path out of the package is left out.
    """
    package = _cached(
        f"{name}_*.deb", ["apt-get", "download", name], if_missing="run this on Debian or Ubuntu"
    )
    try:
        with subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE
        ) as unpacked:
            assert unpacked.stdout is not None
            with tarfile.open(fileobj=unpacked.stdout, mode="r|") as tar:
                for entry in tar:
                    path, target = normpath(entry.name), normpath(entry.linkname)
                    if entry.issym():
                        target = normpath(join(dirname(path), entry.linkname))
                    if path.startswith(OUTSIDE) or target.startswith(OUTSIDE):
                        continue
                    if entry.isreg() and is_wanted(path) and (file := tar.extractfile(entry)):
                        yield path, file.read()
                    elif entry.islnk() or entry.issym():
                        yield path, target
            while unpacked.stdout.read(1 << 20):  # dpkg-deb complains if its padding is not read
                pass
        if unpacked.returncode:  # a cut between two files looks like an end
            raise tarfile.ReadError(f"dpkg-deb ended with {unpacked.returncode}")
    except tarfile.TarError as error:
        raise StageError(
            found=f"a package that cannot be read: {error}",
            where=str(package),
            do="delete it, then run this again, which fetches it anew",
        ) from error


def cached_versions(names: Sequence[str]) -> list[str]:
    """Returns the packages' file names in the cache, with versions."""
    flat = [name.strip("@").replace("/", "-") for name in names]
    cached = {
        file.name
        for name in flat
        for pattern in (f"{name}_*.deb", f"{name}-[0-9]*.tgz")
        for file in cache_folder().glob(pattern)
    }
    return sorted(cached)


def cache_folder() -> Path:
    """Returns the folder that keeps packages between builds."""
    chosen = os.environ.get("CLIPMILL_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "clipmill" / "packages"


def _cached(pattern: str, command: list[str], if_missing: str) -> Path:
    """Returns the cached file of a pattern; else runs a command that fetches it to its folder."""
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    cached = sorted(cache.glob(pattern))
    if cached:
        return cached[-1]
    shown = " ".join(command)
    if shutil.which(command[0]) is None:
        raise StageError(
            found=f"{command[0]} is not installed", where=f"before `{shown}`", do=if_missing
        )
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        ran = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
        fetched = list(Path(scratch).iterdir())
        if ran.returncode != 0 or len(fetched) != 1:
            message = ran.stderr.strip().splitlines()[-1:] or ["no message"]
            raise StageError(
                found=f"`{shown}` ended with {ran.returncode}: {message[0]}",
                where=f"the package cache {cache}",
                do="run `apt-get update`, then this again"
                if command[0] == "apt-get"
                else "check that npm reaches its registry, then run this again",
            )
        # Renamed when whole: an interrupted download leaves nothing that looks like a package.
        return fetched[0].replace(cache / fetched[0].name)
