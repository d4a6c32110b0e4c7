"""Measures work in workers, for the driver to add up."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class Spent:
    """The work on one stage in a run, in all workers: processor time, time at work, and its rows.

    A dataset stage counts the rows of its root, once it is done.
    """

    cpu_s: float = 0.0
    busy_s: float = 0.0
    rows: int = 0

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Adds what the body takes, of this process."""
        cpu_s, busy_s = time.process_time(), time.perf_counter()
        try:
            yield
        finally:
            self.cpu_s += time.process_time() - cpu_s
            self.busy_s += time.perf_counter() - busy_s

    def add(self, other: "Spent", share: float = 1.0) -> None:
        """Adds a share of other work."""
        self.cpu_s += other.cpu_s * share
        self.busy_s += other.busy_s * share
        self.rows += other.rows
