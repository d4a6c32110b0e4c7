"""Kill points: named places at which tests kill a run.

`CLIPMILL_FAULT=record:3` with `CLIPMILL_FAULT_DIR=DIR` kills the process group with SIGKILL when
any process of the run reaches a point named `record` for the third time; `write arms/*:1` when a
file of that pattern is first written. `any` counts all points; `any:0` only counts.
`CLIPMILL_FAULT_SCOPE=process` kills only the process that got there. Each reach leaves a file in
DIR, so a test sees which points were reached, and how often.
"""

import os
import signal
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from itertools import count
from pathlib import Path

BY_THE_CLOCK = ("live.json",)  # written every second: would shift the counts of all others


def reached(point: str, name: str) -> None:
    """Kills the process or its group if a test has set a fault at this point."""
    fault = os.environ.get("CLIPMILL_FAULT")
    if not fault or name in BY_THE_CLOCK:
        return
    pattern, _, count = fault.rpartition(":")
    folder, text = Path(os.environ["CLIPMILL_FAULT_DIR"]), f"{point} {name}"
    number = _next(folder, "any" if pattern == "any" else point, text)
    is_named = fnmatchcase(text, pattern)
    if is_named:
        number = sum(fnmatchcase(file.read_text(), pattern) for file in folder.iterdir())
    if (is_named or pattern in ("any", point)) and number == int(count):
        if os.environ.get("CLIPMILL_FAULT_SCOPE") == "process":
            os.kill(os.getpid(), signal.SIGKILL)
        os.killpg(os.getpgid(0), signal.SIGKILL)


def _next(folder: Path, point: str, text: str) -> int:
    """Returns 1, 2, 3 … across all processes: creates a file exclusively to count."""
    numbers = _numbers(folder, point)
    while True:
        number = next(numbers)
        try:
            with (folder / f"{point}-{number:05d}").open("x") as file:
                file.write(text)
            return number
        except FileExistsError:  # another process took it
            continue


@cache
def _numbers(folder: Path, point: str) -> Iterator[int]:
    """Returns the numbers that this process has not tried yet."""
    return count(1)
