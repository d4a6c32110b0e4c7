"""Reads the files in a stage's `out/`, checked against its manifest.

The files of an export outside its run lie in the folder itself, and its dataset.json lists them.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict

import pyarrow.parquet as pq

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.datacard import SUMMARY
from clipmill.metadata.parquet_file import opened
from clipmill.metadata.record import MANIFEST, Manifest
from clipmill.metadata.sealed import put_sealed, read_sealed_as
from clipmill.metadata.storage import Storage

OUT = "out"
NOTES = "out-notes"  # an object for each file in out/, until the manifest lists them


@dataclass(frozen=True)
class Noted:
    """Size and digest of a stored file."""

    size_bytes: int
    sha256: str


class ExportedFile(TypedDict):
    """What the dataset.json of an export says of a file, beside its rows."""

    file: str
    bytes: int
    sha256: str


class Exported(TypedDict):
    """What is read of an export's dataset.json; other programs have files of that name."""

    files: list[ExportedFile]


class Outputs:
    """A stage's files; reading a changed one raises DamagedError. Old manifests hold sizes only."""

    def __init__(self, folder: Storage) -> None:
        self.folder, self.inside = folder, f"{OUT}/"
        self.sizes: dict[str, int] = {}  # bytes of each file that was stored
        self._sha256: dict[str, str] = {}
        if manifest := read_sealed_as(folder, MANIFEST, Manifest):
            self.sizes = dict(manifest.outputs)
            self._sha256 = {name: manifest.output_sha256.get(name, "") for name in self.sizes}
        elif dataset := folder.read_json(SUMMARY, Exported):
            self.inside, files = "", dataset["files"]
            self.sizes = {file["file"]: file["bytes"] for file in files}
            self._sha256 = {file["file"]: file["sha256"] for file in files}

    @property
    def names(self) -> list[str]:
        return list(self._sha256)

    def read(self, name: str) -> bytes:
        """Returns the bytes of a file; FileNotFoundError if there is none and none is listed."""
        self.check(name)
        return self.folder.read(self.inside + name)

    def check(self, name: str) -> None:
        """Checks a listed file's digest, reading it once in blocks; raises DamagedError."""
        listed = self._sha256.get(name)
        if listed is None:
            return
        try:
            digest = self.folder.sha256(self.inside + name)
        except FileNotFoundError:
            raise DamagedError(self.folder.uri, self.inside + name, "it is gone") from None
        if not digest.startswith(listed):
            found = f"its digest is {digest[:16]}, and {listed[:16]} was stored"
            raise DamagedError(self.folder.uri, self.inside + name, found)

    @contextmanager
    def parquet(self, name: str) -> Iterator[pq.ParquetFile]:
        """Opens a Parquet file; the pages that are read are checked."""
        with opened(self.folder, self.inside + name, self._sha256.get(name, "")) as file:
            yield file


def note_output(folder: Storage, name: str, path: Path, sha256: str = "") -> None:
    """Notes size and digest of a file stored in out/, until the manifest lists it."""
    noted = asdict(Noted(path.stat().st_size, sha256 or digest_of(path)))
    put_sealed(folder, f"{NOTES}/{name}.json", noted, point="digest")


def digest_of(path: Path) -> str:
    """Returns the SHA-256 of a local file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def put_output(folder: Storage, name: str, noted: Noted, source: Storage, source_name: str) -> None:
    """Copies a file of another folder to `out/<name>`, and notes its size and digest."""
    put_sealed(folder, f"{NOTES}/{name}.json", asdict(noted), point="digest")
    folder.put_copy(f"{OUT}/{name}", source, source_name)


def noted_outputs(folder: Storage, began_ns: int = 0) -> dict[str, Noted]:
    """Returns the noted files in out/; DamagedError if one has changed since.

    A file from before `began_ns` was left by a run that was killed: its bytes are read, too.
    """
    notes = [entry.name for entry in folder.entries(NOTES, below=True)]
    noted = {name.removesuffix(".json") for name in notes if name.endswith(".json")}
    there = folder.entries(OUT, below=True)
    entries = {e.name: e for e in there if e.name in noted or "/." not in f"/{e.name}"}

    def check(name: str) -> Noted:
        note = read_sealed_as(folder, f"{NOTES}/{name}.json", Noted)
        entry, path = entries.get(name), f"{OUT}/{name}"
        if entry is not None:
            is_new = entry.mtime_ns >= began_ns
            now = Noted(entry.size, note.sha256 if note and is_new else folder.sha256(path))
            if note in (None, now):
                return now
        raise DamagedError(folder.uri, path, "it changed before its stage was done")

    names = sorted(entries.keys() | noted)
    with ThreadPoolExecutor(16) as pool:  # waits on a disk or a network
        return dict(zip(names, pool.map(check, names), strict=True))
