"""Flattens the lists of texts of all rows, and groups values by row again."""

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import ORIGINAL, TEXT, TEXT_FIELDS, TEXT_LIST

# Shapes: N rows.


def flat_texts(batch: pa.Table, lists: tuple[str, ...], has_own: bool) -> pl.DataFrame:
    """Returns every text with its `row`, in order: the pool's own with `has_own`, then the lists'.

    No nulls.
    """
    row = pl.int_range(len(batch), dtype=pl.UInt32).alias("row")
    parts = [
        pl.DataFrame({"made": batch[name]})
        .select(row, "made")
        .explode("made", empty_as_null=False)
        .unnest("made")
        .select("row", *TEXT_FIELDS)
        for name in lists
    ]
    if has_own:
        known = dict.fromkeys(TEXT_FIELDS[1:], pl.lit(None, pl.String))
        known |= dict.fromkeys(("source", "label"), pl.lit(ORIGINAL))
        parts = [pl.DataFrame({"text": batch[TEXT.name]}).select(row, "text", **known), *parts]
    texts = pl.concat(parts).filter(pl.col("text").is_not_null())
    return texts.sort("row", maintain_order=True)


def text_list(texts: pl.DataFrame, count_N: NDArray[np.integer]) -> pa.Array:
    """Returns the texts as a column, `count_N` of each row; null if a row has none."""
    fields = list(TEXT_LIST.value_type)
    parts = [texts[field.name].to_arrow().cast(field.type) for field in fields]
    return listed(pa.StructArray.from_arrays(parts, fields=fields), count_N)


def listed(values: pa.Array, count_N: NDArray[np.integer]) -> pa.Array:
    """Returns lists of `count_N` values a row; null if a row has none."""
    ends = pa.array(np.append(0, np.cumsum(count_N)), pa.int32())
    return pa.ListArray.from_arrays(ends, values, mask=pa.array(count_N == 0))
