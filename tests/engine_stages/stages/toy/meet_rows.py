"""A row stage that ends only beside others."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa

from clipmill.metadata.schema import REASON, REASON_TYPE, Column
from clipmill.pipeline.stage import RowFunction, RowStage, Worker, location

from .meet_all import meet

NUMBER = Column("number", pa.int64(), "", "Any number.")
SAME = Column("same", pa.int64(), "", "The number.")


@dataclass(frozen=True, kw_only=True)
class MeetRows(RowStage):
    """The number, once `wanted` stages are in `folder`."""

    folder: str = location()
    wanted: int = location(2)

    version = 1
    determinism = "exact"
    reads = (NUMBER,)
    writes = (SAME,)

    def open(self, worker: Worker) -> RowFunction:
        return partial(same, Path(self.folder), worker.stage, self.wanted)


def same(folder: Path, name: str, wanted: int, batch: pa.Table) -> pa.Table:
    meet(folder, name, wanted)
    number = batch[NUMBER.name]
    return pa.table({SAME.name: number, REASON.name: pa.nulls(len(number), REASON_TYPE)})
