"""A weight in the loss by the number of letters, for tests."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import LOSS_WEIGHT, REASON, REASON_TYPE, TEXT
from clipmill.pipeline.stage import RowFunction, RowStage, Worker


@dataclass(frozen=True, kw_only=True)
class Weighs(RowStage):
    """A tenth of a caption's letters; null without a caption."""

    version = 1
    determinism = "exact"
    reads = (TEXT,)
    writes = (LOSS_WEIGHT,)
    reasons = ("no_text",)

    def open(self, worker: Worker) -> RowFunction:
        return weights


def weights(batch: pa.Table) -> pa.Table:
    text = batch[TEXT.name]
    weight = pc.divide(pc.cast(pc.utf8_length(text), pa.float32()), 10.0).cast(LOSS_WEIGHT.dtype)
    reason = pc.if_else(text.is_null(), "no_text", pa.scalar(None, pa.string()))
    return pa.table({LOSS_WEIGHT.name: weight, REASON.name: reason.cast(REASON_TYPE)})
