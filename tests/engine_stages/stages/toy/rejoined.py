"""A number put together again from what two edges to one stage give."""

from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.outputs import Outputs
from clipmill.metadata.schema import REASON, REASON_TYPE, Column
from clipmill.metadata.storage import Storage
from clipmill.pipeline.stage import RowFunction, RowStage, Worker

DISTANCE = Column("distance", pa.int64(), "", "Number less the centre.")
SUM = Column("sum", pa.int64(), "", "Distance and centre.")


@dataclass(frozen=True, kw_only=True)
class Rejoined(RowStage):
    """A row's distance and the centre in the folder of `model`, added."""

    model: str

    version = 1
    determinism = "exact"
    takes = ("rows", "model")
    reads = (DISTANCE,)
    writes = (SUM,)

    def open(self, worker: Worker) -> RowFunction:
        assert worker.model is not None
        centre = int(Outputs(Storage(worker.model)).read("centre.txt"))
        return partial(plus, centre)


def plus(centre: int, batch: pa.Table) -> pa.Table:
    fine = pa.nulls(len(batch), REASON_TYPE)
    return pa.table({SUM.name: pc.add(batch[DISTANCE.name], centre), REASON.name: fine})
