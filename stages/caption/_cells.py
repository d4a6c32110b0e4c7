"""Cells of texts: each text lies in that of its nearest centroid, each row looks into some."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import POSITION, REASON, SHARD, TEXT, UID
from clipmill.pipeline.errors import StageError
from clipmill.stages.caption._corpus import VECTOR
from clipmill.stages.ops import centroids
from clipmill.stages.ops.nearest import nearest_centre
from clipmill.stages.ops.vectors import as_matrix, unit_rows

# Shapes: N rows, K centroids, D width of a vector.

CELL = "cell"
MET = pa.schema(  # a row and a cell that it looks into; or, without a place, a text and its cell
    [
        *((column.name, column.dtype) for column in (UID, SHARD, POSITION, TEXT)),
        (CELL, pa.int32()),
        (VECTOR, pa.list_(pa.float32())),
        (REASON.name, pa.string()),
    ]
)


@dataclass(frozen=True)
class Cells:
    """Where centroids of texts are, and how many of them a row looks into."""

    folder: str | None
    setting: str
    digest: str  # of the file, so that a worker keeps no others
    where: str
    most: int


@lru_cache(maxsize=1)
def centres_of(cells: Cells) -> NDArray[np.float32]:
    """(K, D) the centroids at length 1."""
    unit_KD = unit_rows(centroids.read(cells.folder, cells.setting, cells.where).vector)
    return unit_KD[np.isfinite(unit_KD).all(axis=1)]


def need_one_width(row_ND: NDArray, centre_KD: NDArray, where: str) -> None:
    """StageError where vectors are not as wide as the centroids."""
    if len(row_ND) and row_ND.shape[1] != centre_KD.shape[1]:
        found = f"embeddings {row_ND.shape[1]} wide, and centroids {centre_KD.shape[1]} wide"
        raise StageError(found, f"{where}, key `centroids`", "name centroids of the same model")


def in_cells(cells: Cells, texts: pa.Table) -> pa.Table:
    """The texts with the cell that each lies in, as rows without a place."""
    vector_KD = as_matrix(texts[VECTOR])
    need_one_width(vector_KD, centres_of(cells), cells.where)
    told = {
        TEXT.name: texts["text"],
        CELL: nearest_centre(vector_KD, centres_of(cells)),
        VECTOR: texts[VECTOR].cast(MET.field(VECTOR).type),
    }
    nothing = {it.name: pa.nulls(len(texts), it.type) for it in MET if it.name not in told}
    return pa.table({**told, **nothing}).select(MET.names).cast(MET)


def once_in_order(texts: pa.Table) -> pa.Array:
    """Places of the texts by cell, then by their bytes, each once in a cell."""
    frame = pl.DataFrame(texts.select([CELL, TEXT.name])).with_row_index("place")
    once = frame.unique([CELL, TEXT.name], keep="first", maintain_order=True)
    return once.sort(CELL, TEXT.name)["place"].to_arrow()
