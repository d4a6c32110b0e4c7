"""Work that never ends, in native code that lets nobody else run."""

import ctypes
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from clipmill.metadata.schema import Column
from clipmill.pipeline.dataset import Context, Inputs, Rank, Task
from clipmill.pipeline.stage import DatasetStage, location

NUMBER = Column("number", pa.int64(), "", "Any number.")


@dataclass(frozen=True, kw_only=True)
class Stuck(DatasetStage):
    """Nothing. While the file `cause` is there, its two units or ranks do not end.

    Each leaves a file beside the cause, named by its process.
    """

    cause: str = location()
    launch: bool = location(False)

    version = 1
    determinism = "exact"
    gives = ("data",)
    reads = (NUMBER,)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        if self.launch:
            ctx.launch(partial(rank, self.cause), 2)
        else:
            ctx.map(partial(stuck, self.cause), [0, 1])


def rank(cause: str, one: Rank, task: Task) -> Mapping[str, Any]:
    return stuck(cause, one.rank, task)


def stuck(cause: str, item: Any, task: Task) -> Mapping[str, Any]:
    (task.worker.scratch / "on-its-way").touch()
    if Path(cause).exists():
        Path(f"{cause}-{os.getpid()}").touch()
        ctypes.PyDLL(None).sleep(600)  # holds the interpreter's lock
    return {"item": item}
