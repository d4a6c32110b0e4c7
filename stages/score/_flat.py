"""The captions of rows as one flat table, and lists of values made of flat columns."""

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from metadata.schema import TEXT, TEXT_LIST

# Shapes: N rows of the batch, T texts of all of them.

FIELDS = [field.name for field in TEXT_LIST.value_type]
ORIGINAL = "original"  # source and label of the pool's own caption


def flat_texts(batch: pa.Table, lists: tuple[str, ...]) -> pl.DataFrame:
    """Every text with its `row`, the pool's first, which `is_own`; no nulls."""
    row = pl.int_range(len(batch), dtype=pl.UInt32).alias("row")
    parts = [
        pl.DataFrame({"made": batch[name]})
        .select(row, "made")
        .explode("made", empty_as_null=False)
        .unnest("made")
        .select("row", *FIELDS)
        for name in lists
    ]
    if TEXT.name in batch.column_names:
        none = pl.lit(None, pl.String)
        own = pl.DataFrame({"text": batch[TEXT.name]}).select(
            row,
            "text",
            source=pl.lit(ORIGINAL),
            model=none,
            prompt_id=none,
            label=pl.lit(ORIGINAL),
        )
        parts = [own, *parts]
    texts = pl.concat(parts).filter(pl.col("text").is_not_null()).sort("row", maintain_order=True)
    is_own = (pl.col("source") == ORIGINAL) & (pl.col("label") == ORIGINAL)
    return texts.with_columns(is_own=is_own.fill_null(False))


def known_texts(batch: pa.Table, columns: tuple[str, ...]) -> pl.DataFrame:
    """`row` and `text` of all that these columns hold: texts, lists of texts, captions' lists."""
    row = pl.int_range(len(batch), dtype=pl.UInt32).alias("row")
    parts = [pl.DataFrame(schema={"row": pl.UInt32, "text": pl.String})]
    for name in columns:
        texts = pl.DataFrame({"text": batch[name]}).select(row, "text")
        if isinstance(texts.schema["text"], pl.List):
            texts = texts.explode("text", empty_as_null=False)
        if isinstance(texts.schema["text"], pl.Struct):
            texts = texts.select("row", pl.col("text").struct.field("text"))
        parts.append(texts.with_columns(pl.col("text").cast(pl.String)))
    return pl.concat(parts).drop_nulls()


def listed(values: pa.Array, texts_N: NDArray[np.integer], dtype: pa.DataType) -> pa.ListArray:
    """One list a row of a flat column; null for a row without a text."""
    offsets = np.append(0, np.cumsum(texts_N)).astype(np.int32)
    mask = pa.array(texts_N == 0)
    return pa.ListArray.from_arrays(offsets, values.cast(dtype.value_type), type=dtype, mask=mask)
