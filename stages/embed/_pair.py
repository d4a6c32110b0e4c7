"""Two vectors a row, one of the image and one of the caption, each null where its input is."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.schema import REASON, REASON_TYPE
from clipmill.stages.ops.vectors import from_matrix

# Shapes: N rows of the batch, D width of the vectors.

T = TypeVar("T")


def vectors(
    inputs: Sequence[T | None], embed: Callable[[list[T]], NDArray[np.float32]], width: int
) -> pa.FixedSizeListArray:
    """(N, D) what `embed` makes of the inputs that are there; null for the others."""
    missing_N = np.array([it is None for it in inputs], bool)
    row_ND = np.full((len(inputs), width), np.nan, np.float32)
    if not missing_N.all():
        row_ND[~missing_N] = embed([it for it in inputs if it is not None])
    return from_matrix(row_ND)


def pair(vectors: dict[str, pa.Array], reasons: tuple[str, ...]) -> pa.Table:
    """Both columns, and the reason of the first that is null."""
    missing = pc.make_struct(*(column.is_null() for column in vectors.values()))
    reason = pc.case_when(missing, *reasons).cast(REASON_TYPE)
    return pa.table({**vectors, REASON.name: reason})
