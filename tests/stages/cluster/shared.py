"""Rows for tests of k-means, and the stage run over them in memory."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.pipeline.dataset import Inputs
from clipmill.stages.cluster.kmeans import KMeans
from clipmill.stages.ops.vectors.matrices import from_matrix, unit_rows

D = 8
VALUES = ["uid", "cluster_id", "centroid_cosine"]


def table(row_ND: np.ndarray, first: int = 0) -> pa.Table:
    uids = [(first + i).to_bytes(16, "big") for i in range(len(row_ND))]
    return pa.table({"uid": pa.array(uids, pa.binary(16)), "image_embedding": from_matrix(row_ND)})


def blobs(rows: int, centres: int, spread: float, width: int = D) -> np.ndarray:
    """Vectors around random directions, of random lengths."""
    rng = np.random.default_rng(0)
    near_ND = unit_rows(rng.standard_normal((centres, width)))[rng.integers(0, centres, rows)]
    row_ND = near_ND + spread * rng.standard_normal((rows, width))
    return (row_ND * rng.uniform(0.1, 10, (rows, 1))).astype(np.float32)


def clustered(ctx, shards, folder=None, model_of=None, **settings) -> pa.Table:
    """All rows, as the stage stores them; `folder` is that of the stage that gives centroids."""
    inputs = Inputs(rows=shards, model_of=model_of or {}, centroids=folder)
    KMeans(**settings).run(inputs, ctx)
    return pa.concat_tables(t.unify_dictionaries() for t in ctx.stored).sort_by("uid")


def centroids_of(ctx) -> pa.Table:
    return pq.read_table(ctx.out / "centroids.parquet")


def summary_of(ctx) -> dict:
    return json.loads((ctx.out / "clusters.json").read_text())
