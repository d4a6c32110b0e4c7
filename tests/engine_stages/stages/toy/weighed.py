"""A number times a weight, which lies in a file outside the run."""

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import REASON, REASON_TYPE, Column
from clipmill.pipeline.stage import RowFunction, RowStage, Worker, location

PRODUCT = Column("product", pa.int64(), "", "The number times the weight.")
NUMBER = Column("number", pa.int64(), "", "Any number.")


@dataclass(frozen=True, kw_only=True)
class Weighed(RowStage):
    """The number times the weight in the file; null where it is null."""

    weights: str = location("")

    version = 1
    determinism = "exact"
    reads = (NUMBER,)
    writes = (PRODUCT,)

    def open(self, worker: Worker) -> RowFunction:
        data = Path(self.weights).read_bytes()
        worker.pin("the weights", hashlib.sha256(data).hexdigest())
        return partial(times, int(data))


def times(weight: int, batch: pa.Table) -> pa.Table:
    fine = pa.nulls(len(batch), REASON_TYPE)
    return pa.table({PRODUCT.name: pc.multiply(batch[NUMBER.name], weight), REASON.name: fine})
