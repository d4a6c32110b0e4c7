"""A dataset stage that ends only beside others."""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from clipmill.metadata.schema import Column
from clipmill.pipeline.dataset import Context, Inputs, Task
from clipmill.pipeline.errors import ShardError
from clipmill.pipeline.stage import DatasetStage, location

NUMBER = Column("number", pa.int64(), "", "Any number.")
LIMIT_S = 20.0  # against hanging


@dataclass(frozen=True, kw_only=True)
class MeetAll(DatasetStage):
    """out/<stage>.txt, once `wanted` stages are in `folder`. With `fails` it fails then."""

    folder: str = location()
    wanted: int = location(2)
    fails: bool = location(False)

    version = 1
    determinism = "exact"
    gives = ("data",)
    reads = (NUMBER,)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        ctx.map(partial(meet_and_write, Path(self.folder), self.wanted, self.fails), [0])


def meet_and_write(folder: Path, wanted: int, fails: bool, item: int, task: Task) -> dict[str, Any]:
    meet(folder, task.worker.stage, wanted)
    if fails:
        raise ShardError("it fails", "here", "let it")
    path = task.worker.scratch / f"{task.worker.stage}.txt"
    path.write_text("met\n")
    task.put_file(path.name, path)
    return {"file": path.name}


def meet(folder: Path, name: str, wanted: int) -> None:
    """Ends once so many names are there."""
    (folder / name).touch()
    limit = time.monotonic() + LIMIT_S
    while len(list(folder.iterdir())) < wanted:
        if time.monotonic() > limit:
            raise ShardError(f"{wanted} stages did not meet", str(folder), "run them at once")
        time.sleep(0.01)
