"""Stores the newest state of long work, such as training, until its stage is complete.

Checkpoints lie in the stage's journal, which belongs to the stage's inputs: work on other inputs
finds none, and they are deleted with the journal. A file is named by its step and digest.
"""

import re
import uuid
from contextlib import suppress
from pathlib import Path

from clipmill.metadata.outputs import digest_of
from clipmill.metadata.storage import Storage

FOLDER = "checkpoints"  # within a journal
NAME = re.compile(r"(\d{12})-([0-9a-f]{32})")


class StoredCheckpoints:
    """Checkpoints stored in one folder: implements `Checkpoints`."""

    def __init__(self, folder: Storage, place: str, scratch: Path) -> None:
        self.folder, self.place, self.scratch = folder, place, scratch

    def put(self, step: int, path: Path) -> None:
        name = f"{step:012d}-{digest_of(path)[:32]}"
        self.folder.put_file(f"{self.place}/{name}", path, point="step")
        for other in self._names():
            if other != name:
                self.folder.delete(f"{self.place}/{other}")

    def newest(self) -> tuple[int, Path] | None:
        copy = self.scratch / f"checkpoint-{uuid.uuid4().hex}"
        while names := self._names():
            for name in names:
                step, sha256 = name.split("-")
                with suppress(FileNotFoundError):  # replaced by a newer one
                    self.folder.download(f"{self.place}/{name}", copy)
                    if digest_of(copy).startswith(sha256):
                        return int(step), copy
            if names == self._names():
                break
        copy.unlink(missing_ok=True)
        return None

    def _names(self) -> list[str]:
        """Lists the checkpoints, newest first."""
        names = [entry.name for entry in self.folder.entries(self.place)]
        return sorted(filter(NAME.fullmatch, names), reverse=True)
