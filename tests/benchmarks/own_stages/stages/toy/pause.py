"""A dataset stage that only takes time."""

import time
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from metadata.schema import Column
from pipeline.dataset import Context, Inputs, Task
from pipeline.stage import DatasetStage


@dataclass(frozen=True, kw_only=True)
class Pause(DatasetStage):
    """Nothing, after `seconds` in which a worker sleeps."""

    seconds: float

    version = 1
    determinism = "exact"
    gives = ("data",)
    reads = (Column("number", pa.int64(), "number", "Read."),)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        ctx.map(partial(pause, self.seconds), [0])


def pause(seconds: float, item: int, task: Task) -> dict[str, int]:
    time.sleep(seconds)
    return {"item": item}
