"""A power of the number."""

from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import REASON, Column
from clipmill.pipeline.stage import RowFunction, RowStage, Worker

POWER = Column("power", pa.int64(), "", "The number to the power of `exponent`.")
NUMBER = Column("number", pa.int64(), "", "Any number.")


@dataclass(frozen=True, kw_only=True)
class Power(RowStage):
    """The number to the power of `exponent`; null where it divides by seven, or is null."""

    exponent: int = 2

    version = 1
    determinism = "exact"
    reads = (NUMBER,)
    writes = (POWER,)
    reasons = ("sevenfold", "no_number")
    batch_rows = 8

    def open(self, worker: Worker) -> RowFunction:
        return partial(power, self.exponent)


def power(exponent: int, batch: pa.Table) -> pa.Table:
    number = batch[NUMBER.name].combine_chunks()
    sevenfold = pc.equal(pc.multiply(pc.divide(number, 7), 7), number)
    reason = pc.case_when(
        pc.make_struct(number.is_null(), pc.fill_null(sevenfold, False)), "no_number", "sevenfold"
    )
    value = pc.if_else(reason.is_null(), pc.power(number, exponent), None)
    return pa.table({POWER.name: value, REASON.name: reason.dictionary_encode()})
