"""Texts of rows as a column."""

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from metadata.schema import TEXT_LIST

# Shapes: N rows.


def text_list(texts: pl.DataFrame, texts_N: NDArray[np.int64]) -> pa.Array:
    """The texts as a column, so many of each row; null where a row has none."""
    fields = TEXT_LIST.value_type
    parts = [texts[field.name].to_arrow().cast(field.type) for field in fields]
    values = pa.StructArray.from_arrays(parts, fields=list(fields))
    ends = pa.array(np.append(0, np.cumsum(texts_N)), pa.int32())
    return pa.ListArray.from_arrays(ends, values, mask=pa.array(texts_N == 0))
