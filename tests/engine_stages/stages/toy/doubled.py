"""Twice the number, which is derived from it."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import REASON, REASON_TYPE, Column, Derived
from clipmill.pipeline.stage import RowFunction, RowStage, Worker


def double(numbers: pa.ChunkedArray) -> pa.Array:
    return pc.multiply(numbers, 2).combine_chunks()


DOUBLE = Derived(
    name="double",
    dtype=pa.int64(),
    unit="",
    doc="Twice the number.",
    source=Column("number", pa.int64(), "", "Any number."),
    derive=double,
)


@dataclass(frozen=True, kw_only=True)
class Doubled(RowStage):
    """The derived column, stored."""

    version = 1
    determinism = "exact"
    reads = (DOUBLE,)
    writes = (Column("doubled", pa.int64(), "", "Twice the number."),)
    batch_rows = 8

    def open(self, worker: Worker) -> RowFunction:
        return stored


def stored(batch: pa.Table) -> pa.Table:
    reason = pa.nulls(len(batch), REASON_TYPE)
    return pa.table({"doubled": batch[DOUBLE.name], REASON.name: reason})
