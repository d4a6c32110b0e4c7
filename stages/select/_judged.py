"""Masks of rows that a select does not decide on, and the table of verdicts that it stores."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import IDENTITY, IMAGE_BYTES, KEEP, REASON, REASON_TYPE
from clipmill.stages.ops.tables.rows import DROPPED, dropped_before

# Shapes: N rows.

NO_IMAGE = f"undefined:{IMAGE_BYTES.name}"
Masks = dict[str, pa.Array | pa.ChunkedArray]


def left_out(rows: pa.Table) -> Masks:
    """Returns by reason (N,) whether an earlier select dropped the row, or its image failed."""
    masks: Masks = {DROPPED: dropped_before(rows)}
    if IMAGE_BYTES.name in rows.column_names:
        masks[NO_IMAGE] = rows[IMAGE_BYTES.name].is_null()
    return masks


def first_of(masks: Masks) -> pa.Array | pa.ChunkedArray:
    """Returns (N,) the first reason whose mask holds; null if none does."""
    return pc.case_when(pc.make_struct(*masks.values()), *masks)


def judged_rows(
    rows: pa.Table, reason: pa.Array | pa.ChunkedArray, made: Mapping[str, Any]
) -> pa.Table:
    """Returns identity, keep (true without a reason), the stage's columns, and the reason."""
    return pa.table(
        {
            **{name: rows[name] for name in IDENTITY},
            KEEP.name: reason.is_null(),
            **made,
            REASON.name: reason.cast(REASON_TYPE),
        }
    )
