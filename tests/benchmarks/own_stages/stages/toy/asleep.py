"""A stage that sleeps: what a run of it takes beyond the sleep is the engine's."""

import json
import time
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from clipmill.metadata.schema import Column
from clipmill.pipeline.stage import Gpus, Resources, RowFunction, RowStage, Worker, location

CODE = Column("phash", pa.uint64(), "64 bits", "Read.")
SLEPT = Column("slept", pa.uint64(), "64 bits", "What was read.")


@dataclass(frozen=True, kw_only=True)
class Asleep(RowStage):
    """The code as read, after a sleep a batch; notes in a log when it began and ended.

    Error: none.
    """

    seconds: float
    log: str = location()
    gpus: Gpus = location(0)

    version = 1
    determinism = "exact"
    reads = (CODE,)
    writes = (SLEPT,)

    @property
    def resources(self) -> Resources:
        return Resources(gpus=self.gpus, memory_gb=0.1)

    def open(self, worker: Worker) -> RowFunction:
        return partial(asleep, self, worker.stage)


def asleep(stage: Asleep, name: str, batch: pa.Table) -> pa.Table:
    """slept and reason of each row."""
    began = time.time()
    time.sleep(stage.seconds)
    with open(stage.log, "a") as log:
        log.write(json.dumps({"stage": name, "began": began, "ended": time.time()}) + "\n")
    reason = pa.nulls(len(batch), pa.string()).dictionary_encode()
    return pa.table({"slept": batch["phash"], "reason": reason})
