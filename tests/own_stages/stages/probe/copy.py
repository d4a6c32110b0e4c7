"""A stage for tests of the engine: its values and failures can be worked out by head."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import Column
from clipmill.pipeline.stage import RowFunction, RowStage, Worker


@dataclass(frozen=True, kw_only=True)
class Copy(RowStage):
    """The number in `column`, as `to`; null without one, and where `unlucky` divides it.

    Error: none.
    """

    column: str
    to: str
    unlucky: int = 1_000_000

    version = 1
    determinism = "exact"
    reasons = ("no_number", "unlucky")

    @property
    def reads(self) -> tuple[Column, ...]:
        return (Column(self.column, pa.int64(), "number", "Read."),)

    @property
    def writes(self) -> tuple[Column, ...]:
        return (Column(self.to, pa.int64(), "number", "Written."),)

    def open(self, worker: Worker) -> RowFunction:
        return self.copied

    def copied(self, batch: pa.Table) -> pa.Table:
        number = batch[self.column]
        divided = pc.equal(pc.multiply(pc.divide(number, self.unlucky), self.unlucky), number)
        unlucky = pc.fill_null(divided, False)
        reason = pc.case_when(pc.make_struct(number.is_null(), unlucky), *self.reasons)
        return pa.table(
            {self.to: pc.if_else(unlucky, None, number), "reason": reason.dictionary_encode()}
        )
