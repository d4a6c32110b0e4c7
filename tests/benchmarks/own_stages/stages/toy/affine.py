"""Arithmetic on a number: as little work as a stage can do."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import Column
from clipmill.pipeline.stage import RowFunction, RowStage, Worker


@dataclass(frozen=True, kw_only=True)
class Affine(RowStage):
    """Twice the number and one; null from 990,000 up, one row in a hundred.

    Error: none.
    """

    version = 1
    batch_rows = 4096  # a row group: so little work a row that a call should bring many
    determinism = "exact"
    reads = (Column("number", pa.int64(), "number", "Read."),)
    writes = (Column("affine", pa.int64(), "number", "Written."),)
    reasons = ("too_great",)

    def open(self, worker: Worker) -> RowFunction:
        return affine


def affine(batch: pa.Table) -> pa.Table:
    """affine and reason of each row."""
    too_great = pc.greater_equal(batch["number"], 990_000)
    value = pc.add(pc.multiply(batch["number"], 2), 1)
    return pa.table(
        {
            "affine": pc.if_else(too_great, None, value),
            "reason": pc.if_else(too_great, "too_great", None).dictionary_encode(),
        }
    )
