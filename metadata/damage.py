"""A stored file that is not what was stored: noticed where it is read, made again by a run."""

from clipmill.metadata.keys import redacted


class DamagedError(Exception):
    """A file of a stage's folder. Three arguments, as it must pickle to leave a worker."""

    def __init__(self, folder: str, name: str, found: str) -> None:
        super().__init__(folder, name, found)
        self.folder, self.name, self.found = folder, name, found

    def __str__(self) -> str:
        return f"{self.found}\n  where: {self.place}"

    @property
    def place(self) -> str:
        """Where it is, without keys."""
        return f"{redacted(self.folder)}/{self.name}"
