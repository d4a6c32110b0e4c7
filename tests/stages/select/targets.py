"""Vectors with ties, and the published rule by which targets choose among them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.stages.ops.vectors.matrices import from_matrix

D = 8
MODEL = "open_clip:ViT-L-14/openai"


def datacomp(row_ND, target_MD, centroid_KD) -> np.ndarray:
    """(N,) whether the published rule keeps each row, as METHODS have it, in float64."""

    def nearest(vector_ND):
        products_NK = np.vecdot(vector_ND[:, None], centroid_KD, dtype=np.float64)
        return products_NK.argmax(axis=1)  # of equal ones the first

    return np.isin(nearest(row_ND), np.unique(nearest(target_MD)))


def coarse(rng, rows: int, step: float = 0.25, d: int = D) -> np.ndarray:
    """Vectors of few distinct numbers, whose products are exact: many of them are equal."""
    return (rng.integers(-4, 5, (rows, d)) * step).astype(np.float32)


def pool(row_ND: np.ndarray, **columns) -> pa.Table:
    uids = [(1 + i).to_bytes(16, "big") for i in range(len(row_ND))]
    vectors = from_matrix(row_ND)
    return pa.table({"uid": pa.array(uids, pa.binary(16)), "image_embedding": vectors, **columns})


def write_targets(path, vector_MD, model: str | None = MODEL, column="image_embedding") -> str:
    table = pa.table({column: from_matrix(np.asarray(vector_MD, np.float32))})
    pq.write_table(table.replace_schema_metadata({"clipmill.model": model} if model else {}), path)
    return str(path)
