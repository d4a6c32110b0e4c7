"""The verbs of `clipmill`, one a file: arguments, work, and the answer as text.

The help imports every verb, so each imports what its work needs inside functions.
"""

import argparse
from typing import Protocol

DONE, FAILED, WRONG = 0, 1, 2


class Verb(Protocol):
    """The members of each file here; the file's name is the verb."""

    HELP: str
    EXAMPLES: str  # whole commands, one a line

    def add(self, parser: argparse.ArgumentParser) -> None:
        """Adds the verb's arguments."""

    def run(self, options: argparse.Namespace) -> int:
        """Does the work and prints the answer; returns the exit code."""
