"""Converts vectors between Arrow columns and NumPy matrices."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.pipeline.errors import StageError

# Shapes: N rows, D width of a vector.

CACHED = 64  # rows in float64 at a time
MOST_UNUSABLE = 0.1  # share of vectors: with more, what made them is to blame, and not the rows
FEW = 64  # vectors, too few to judge a share


def holds_vectors(dtype: pa.DataType) -> bool:
    """Returns whether values of this type are lists of floats, of a width or of none."""
    lists = pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list
    return any(fits(dtype) for fits in lists) and pa.types.is_floating(dtype.value_type)


def as_matrix(column: pa.ChunkedArray | pa.Array) -> NDArray[np.float32]:
    """Returns (N, D) the vectors of a list column, NaN if null; a view if Arrow's layout allows."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    if pa.types.is_fixed_size_list(column.type):
        width = column.type.list_size
        parts = [_fixed_rows(chunk, width) for chunk in chunks if len(chunk)]
    else:  # a list without a width: every vector must still have the same one
        lengths = pc.unique(pc.list_value_length(column)).drop_null().to_pylist()
        if len(lengths) > 1:
            raise ValueError(f"vectors of {len(lengths)} widths in one column: {sorted(lengths)}")
        width = lengths[0] if lengths else 0
        parts = [_varying_rows(chunk, width) for chunk in chunks if len(chunk)]
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty((0, width), np.float32)


def from_matrix(
    row_ND: NDArray[np.floating], null_N: NDArray[np.bool_] | None = None
) -> pa.FixedSizeListArray:
    """Returns vectors as a column of fixed width; null by `null_N`, else where a value is NaN."""
    if null_N is None:
        null_N = np.isnan(row_ND).any(axis=1)
    values = pa.array(np.ascontiguousarray(row_ND, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(values, row_ND.shape[1], mask=pa.array(null_N))


def unusable(row_ND: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Returns (N,) which vectors have no direction: zero or not finite ones, or without a width."""
    return ~(np.isfinite(row_ND).all(axis=1) & row_ND.any(axis=1))


def refuse_unusable(bad: int, rows: int, where: str, do: str) -> None:
    """Raises StageError if more than a tenth of the vectors are zero or not finite."""
    if rows >= FEW and bad > MOST_UNUSABLE * rows:
        found = f"{bad:,} of {rows:,} vectors are zero or not finite: NaN or infinite"
        raise StageError(found, where, do)


def refuse_column(
    missing_N: NDArray[np.bool_], bad_N: NDArray[np.bool_], column: str, model: str | None
) -> None:
    """Applies `refuse_unusable` to a shard's column that a model made, without missing rows."""
    where = f"column '{column}'" + (f", of the model {model}" if model else "")
    do = "embed with a model that is whole; where rows have no vector, write null"
    refuse_unusable(int((bad_N & ~missing_N).sum()), int((~missing_N).sum()), where, do)


def refuse_widths(image_ND: NDArray, text_ND: NDArray, where: str) -> None:
    """Raises StageError if images and captions have vectors of two widths."""
    if image_ND.shape[1] != text_ND.shape[1]:
        found = f"image embeddings {image_ND.shape[1]} wide, and texts {text_ND.shape[1]} wide"
        raise StageError(found, where, "embed both with one model")


def unit_rows(row_ND: NDArray[np.floating]) -> NDArray[np.float32]:
    """Returns (N, D) each row at length 1; NaN if it is zero or not finite."""
    unit_ND = np.empty(row_ND.shape, np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        for part in blocks(len(row_ND)):
            wide_BD = row_ND[part].astype(np.float64)  # squares of large float32 overflow as such
            length_B1 = np.sqrt(np.vecdot(wide_BD, wide_BD))[:, None]
            wide_BD /= length_B1
            wide_BD[~((length_B1[:, 0] > 0) & np.isfinite(length_B1[:, 0]))] = np.nan
            unit_ND[part] = wide_BD
    return unit_ND


def blocks(rows: int) -> Iterator[slice]:
    """Returns slices of few rows, whose float64 copies fit the processor's cache."""
    return (slice(start, start + CACHED) for start in range(0, rows, CACHED))


def row_dot(a_ND: NDArray[np.float32], b_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns (N,) the dot product of each row of a with that of b, summed in float64."""
    dot_N = np.empty(len(a_ND))
    for part in blocks(len(a_ND)):
        dot_N[part] = np.vecdot(a_ND[part].astype(np.float64), b_ND[part].astype(np.float64))
    return dot_N.astype(np.float32)


def _fixed_rows(chunk: pa.FixedSizeListArray, width: int) -> NDArray[np.float32]:
    values = chunk.values.slice(chunk.offset * width, len(chunk) * width)
    row_ND = _floats(values).reshape(len(chunk), width)
    if chunk.null_count:
        row_ND = row_ND.copy()
        row_ND[chunk.is_null().to_numpy(zero_copy_only=False)] = np.nan
    return row_ND


def _varying_rows(chunk: pa.ListArray, width: int) -> NDArray[np.float32]:
    row_ND = np.full((len(chunk), width), np.nan, np.float32)
    valid_N = chunk.is_valid().to_numpy(zero_copy_only=False)
    row_ND[valid_N] = _floats(chunk.flatten()).reshape(np.count_nonzero(valid_N), width)
    return row_ND


def _floats(values: pa.Array) -> NDArray[np.float32]:
    return values.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)  # null is NaN
