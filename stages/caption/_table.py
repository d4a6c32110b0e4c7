"""The columns of a caption stage that asks no model."""

from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import CAPTIONS_MISSING, REASON, REASON_TYPE
from clipmill.stages.ops.texts.lists import text_list

# Shapes: N rows.


def caption_table(
    rows: int, frames: Sequence[pl.DataFrame], *, column: str, stage: str, reasons: tuple[str, str]
) -> pa.Table:
    """Returns lists of texts, how many are missing, and a reason for each row without texts.

    `frames` are what was there, what of it is missing, and the texts, each with its `row`. The
    first reason stands where nothing was there, the second where it gave no text.
    """
    there_N, missing_N, texts_N = (
        np.bincount(frame["row"].to_numpy(), minlength=rows) for frame in frames
    )
    none_N = texts_N == 0
    reason = pc.case_when(pc.make_struct(pa.array(there_N == 0), pa.array(none_N)), *reasons)
    return pa.table(
        {
            column: text_list(frames[-1].with_columns(source=pl.lit(stage)), texts_N),
            CAPTIONS_MISSING.name: pa.array(missing_N.astype(np.int32), mask=none_N),
            REASON.name: reason.cast(REASON_TYPE),
        }
    )
