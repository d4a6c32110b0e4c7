"""The number again, held at one of them for as long as a file is there."""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa

from clipmill.metadata.schema import REASON, REASON_TYPE, Column
from clipmill.pipeline.stage import RowFunction, RowStage, Worker, location

NUMBER = Column("number", pa.int64(), "", "Any number.")
HELD = Column("held", pa.int64(), "", "The number.")


@dataclass(frozen=True, kw_only=True)
class Held(RowStage):
    """The number; the batch with `at` does not end while the file `gate` is there."""

    gate: str = location()
    at: int = location(0)

    version = 1
    determinism = "exact"
    reads = (NUMBER,)
    writes = (HELD,)
    batch_rows = 4

    def open(self, worker: Worker) -> RowFunction:
        return partial(held, Path(self.gate), self.at)


def held(gate: Path, at: int, batch: pa.Table) -> pa.Table:
    number = batch[NUMBER.name]
    while at in number.to_pylist() and gate.exists():
        time.sleep(0.02)
    return pa.table({HELD.name: number, REASON.name: pa.nulls(len(number), REASON_TYPE)})
