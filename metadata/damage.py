"""The error of a damaged stored file: raised by its reader; a run makes the file again."""

from clipmill.metadata.keys import redacted


class DamagedError(Exception):
    """A damaged file of a stage's folder. Has three arguments: it must pickle to leave a worker."""

    def __init__(self, folder: str, name: str, found: str) -> None:
        super().__init__(folder, name, found)
        self.folder, self.name, self.found = folder, name, found

    def __str__(self) -> str:
        return f"{self.found}\n  where: {self.place}"

    @property
    def place(self) -> str:
        """Returns the file's URI without keys."""
        return f"{redacted(self.folder)}/{self.name}"
