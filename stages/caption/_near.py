"""The texts nearest to each row, out of blocks of texts in any order."""

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.stages.caption._corpus import VECTOR
from clipmill.stages.ops.nearest import nearest_sure
from clipmill.stages.ops.vectors import as_matrix

# Shapes: N rows, D width of a vector, m texts of each, fewer where there are fewer.

NEAR = {"row": pl.Int64, "text": pl.String, "cosine": pl.Float64}


def nobody() -> pl.DataFrame:
    return pl.DataFrame(schema=NEAR)


def nearest_texts(row_ND: NDArray[np.float32], texts: pa.Table, m: int) -> pl.DataFrame:
    """The m texts nearest to each row, both at length 1: row, text and cosine in float64.

    The texts are in the order of their bytes, so of equal cosines the first text is taken.
    """
    if not len(texts) or not len(row_ND):
        return nobody()
    which_Nm, cosine_Nm = nearest_sure(row_ND, as_matrix(texts[VECTOR]), m)
    text = pl.Series(texts["text"])
    return pl.DataFrame(
        {
            "row": np.repeat(np.arange(len(which_Nm)), which_Nm.shape[1]),
            "text": text.gather(which_Nm.reshape(-1)),
            "cosine": cosine_Nm.reshape(-1),
        },
        schema=NEAR,
    )


def best(found: pl.DataFrame, m: int) -> pl.DataFrame:
    """Of each row the m nearest, each text once, best first; of equal ones the first text.

    A text that has several vectors, as one beside several images, counts by the nearest of them.
    """
    found = found.sort(["row", "cosine", "text"], descending=[False, True, False])
    found = found.unique(["row", "text"], keep="first", maintain_order=True)
    return found.filter(pl.int_range(pl.len()).over("row") < m)
