"""An annotator in a user's own folder."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import REASON, REASON_TYPE, TEXT, Column
from clipmill.pipeline.stage import RowFunction, RowStage, Worker


@dataclass(frozen=True, kw_only=True)
class Vowels(RowStage):
    """Share of a caption's characters that are vowels, 0 to 1; null without a caption.

    Error: none.
    """

    version = 1
    determinism = "exact"
    reads = (TEXT,)
    writes = (Column("vowel_share", pa.float32(), "0 to 1", "Vowels.", better="high"),)
    reasons = ("no_text",)

    def open(self, worker: Worker) -> RowFunction:
        return share


def share(batch: pa.Table) -> pa.Table:
    text = batch[TEXT.name]
    vowels = pc.cast(pc.count_substring_regex(text, "[aeiou]"), pa.float32())
    reason = pc.if_else(text.is_null(), "no_text", pa.scalar(None, pa.string()))
    return pa.table(
        {
            "vowel_share": pc.divide(vowels, pc.cast(pc.utf8_length(text), pa.float32())),
            REASON.name: reason.cast(REASON_TYPE),
        }
    )
