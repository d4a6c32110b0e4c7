"""The length of a caption, and what another stage made of a number: a second link of a chain."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import TEXT, Column
from clipmill.pipeline.stage import RowFunction, RowStage, Worker


@dataclass(frozen=True, kw_only=True)
class Letters(RowStage):
    """Characters of the caption plus `affine`; null where that is.

    Error: none.
    """

    version = 1
    batch_rows = 4096  # a row group: so little work a row that a call should bring many
    determinism = "exact"
    reads = (TEXT, Column("affine", pa.int64(), "number", "Read."))
    writes = (Column("letters", pa.int64(), "characters", "Written."),)
    reasons = ("no_affine",)

    def open(self, worker: Worker) -> RowFunction:
        return letters


def letters(batch: pa.Table) -> pa.Table:
    """letters and reason of each row."""
    none = batch["affine"].is_null()
    return pa.table(
        {
            "letters": pc.add(pc.utf8_length(batch["text"]).cast(pa.int64()), batch["affine"]),
            "reason": pc.if_else(none, "no_affine", None).dictionary_encode(),
        }
    )
