"""A stage for tests of the engine: it takes rows and a model."""

from dataclasses import dataclass

import pyarrow as pa

from clipmill.metadata.schema import TEXT, Column
from clipmill.pipeline.stage import RowFunction, RowStage, Worker


@dataclass(frozen=True, kw_only=True)
class Apply(RowStage):
    """The caption's length, whatever the model says; null without text.

    Error: none.
    """

    model: str

    version = 1
    determinism = "exact"
    takes = ("rows", "model")
    reads = (TEXT,)
    writes = (Column("length", pa.int64(), "characters", "Written."),)
    reasons = ("no_text",)

    def open(self, worker: Worker) -> RowFunction:
        return lengths


def lengths(batch: pa.Table) -> pa.Table:
    texts = batch[TEXT.name].to_pylist()
    length = pa.array([None if text is None else len(text) for text in texts], pa.int64())
    reason = pa.array(["no_text" if text is None else None for text in texts], pa.string())
    return pa.table({"length": length, "reason": reason.dictionary_encode()})
