"""Steps for executors: functions that note what they do in a log."""

import json
import os
import signal
from functools import partial
from pathlib import Path

from pipeline.executors import Step
from pipeline.stage import Resources

ONE = Resources(cpus=1, memory_gb=0.1)
OTHER = Resources(cpus=1, memory_gb=0.2)
WHOLE = Resources(cpus=2, memory_gb=0.1)


def step(function, resources=ONE) -> Step:
    """A step of a plain function of one item."""
    return Step(name="step", start=partial(partial, function), resources=resources)


def note(log: Path, **line):
    with log.open("a") as file:
        file.write(json.dumps(line) + "\n")


def notes(log: Path, key: str) -> list[dict]:
    return [line for line in map(json.loads, log.read_text().splitlines()) if key in line]


def start_adding(log: Path, name: str, killed_by: int | None):
    note(log, built=name, pid=os.getpid())

    def add(item):
        note(log, step=name, i=item["i"])
        if item["i"] == killed_by and not log.with_suffix(".killed").exists():
            log.with_suffix(".killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return item | {"sum": item.get("sum", 0) + 1, "pid": os.getpid()}

    return add


def adding(log: Path, name: str, resources=ONE, killed_by: int | None = None) -> Step:
    """A step that adds 1, and notes its start and each item; one item may end its worker once."""
    return Step(name=name, start=partial(start_adding, log, name, killed_by), resources=resources)
