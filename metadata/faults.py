"""Kill points: where a crash would hurt, so that tests can die there and nowhere else.

`CLIPMILL_FAULT=record:3` with `CLIPMILL_FAULT_DIR=DIR` kills the process group with SIGKILL the
third time any process of the run reaches a point named `record`, `write arms/*:1` the first time
that such a file is written; `any` counts all points, and `any:0` only counts.
`CLIPMILL_FAULT_SCOPE=process` kills the one process that got there. Each reach leaves a file in
DIR, so a test sees which points were reached, and how often.
"""

import os
import signal
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from itertools import count
from pathlib import Path

BY_THE_CLOCK = ("live.json",)  # written by the second: it would shift the numbers of all others


def reached(point: str, name: str) -> None:
    """Nothing, unless a test has asked to die here."""
    fault = os.environ.get("CLIPMILL_FAULT")
    if not fault or name in BY_THE_CLOCK:
        return
    wanted, _, count = fault.rpartition(":")
    folder, text = Path(os.environ["CLIPMILL_FAULT_DIR"]), f"{point} {name}"
    number = _next(folder, "any" if wanted == "any" else point, text)
    is_named = fnmatchcase(text, wanted)
    if is_named:
        number = sum(fnmatchcase(file.read_text(), wanted) for file in folder.iterdir())
    if (is_named or wanted in ("any", point)) and number == int(count):
        if os.environ.get("CLIPMILL_FAULT_SCOPE") == "process":
            os.kill(os.getpid(), signal.SIGKILL)
        os.killpg(os.getpgid(0), signal.SIGKILL)


def _next(folder: Path, point: str, text: str) -> int:
    """1, 2, 3 … across all processes: an exclusive create is the counter."""
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
    """Those that this process has not tried yet."""
    return count(1)
