"""The files that a stage left in its `out/`, read only as its manifest says they were stored."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow.parquet as pq

from metadata.damage import DamagedError
from metadata.record import Manifest
from metadata.shard import opened
from metadata.storage import Storage

OUT = "out"
DIGESTS = "digests"  # of the files in out/, each in an object, until the manifest holds them


class Outputs:
    """DamagedError of whatever has changed. Older manifests hold no digests: there, sizes count."""

    def __init__(self, folder: Storage) -> None:
        manifest = folder.read_json("manifest.json", Manifest)
        self.folder = folder
        self._sha256 = (
            {name: manifest.output_sha256.get(name, "") for name, _ in manifest.outputs}
            if manifest
            else {}
        )

    @property
    def names(self) -> list[str]:
        return list(self._sha256)

    def read(self, name: str) -> bytes:
        """The bytes of a file; FileNotFoundError where no stage left one, nor anybody else."""
        self.check(name)
        return self.folder.read(f"{OUT}/{name}")

    def check(self, name: str) -> None:
        """Reads a file once, in blocks, where the manifest lists it."""
        wanted = self._sha256.get(name)
        if wanted is None:
            return
        try:
            held = self.folder.sha256(f"{OUT}/{name}")
        except FileNotFoundError:
            raise DamagedError(self.folder.uri, f"{OUT}/{name}", "it is gone") from None
        if not held.startswith(wanted):
            found = f"its digest is {held[:16]}, and {wanted[:16]} was stored"
            raise DamagedError(self.folder.uri, f"{OUT}/{name}", found)

    @contextmanager
    def parquet(self, name: str) -> Iterator[pq.ParquetFile]:
        """A Parquet file, of which the pages that are read are checked."""
        with opened(self.folder, f"{OUT}/{name}", self._sha256.get(name, "")) as file:
            yield file


def stored_digest(folder: Storage, name: str) -> str:
    """The SHA-256 of a file as it was stored, by the unit of work that did."""
    return folder.read_json(f"{DIGESTS}/{name}.json", str) or folder.sha256(f"{OUT}/{name}")
