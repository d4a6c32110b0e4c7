"""Masks of rows that a select does not decide on, its verdicts, and the size that it keeps."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import IMAGE_BYTES, KEEP
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.stage import DatasetStage
from clipmill.stages.ops.tables.rows import DROPPED, dropped_before, with_reason

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
    return with_reason(rows, {KEEP.name: reason.is_null(), **made}, reason)


def the_size(stage: DatasetStage, names: tuple[str, ...], do: str) -> tuple[str, Any]:
    """Returns name and value of the one setting that says how much stays; else RecipeError."""
    chosen = [name for name in names if getattr(stage, name) is not None]
    if len(chosen) != 1:
        found = f"{' and '.join(chosen)} say" if chosen else "nothing says"
        raise RecipeError(f"{found} how much stays", "its settings", do)
    return chosen[0], getattr(stage, chosen[0])
