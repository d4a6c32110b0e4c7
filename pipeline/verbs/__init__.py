"""The verbs of `clipmill`, one a file: its arguments, its work, and its answer as text.

A verb is imported to print the help, so it imports what its work needs in a function.
"""

import argparse
from typing import Protocol

DONE, FAILED, WRONG = 0, 1, 2


class Verb(Protocol):
    """What every file here has; its name is the verb."""

    __name__: str
    HELP: str
    EXAMPLES: str  # whole commands, one a line

    def add(self, parser: argparse.ArgumentParser) -> None:
        """Adds its arguments."""

    def run(self, options: argparse.Namespace) -> int:
        """Does the work and prints the answer; returns the exit code."""
