"""A clustering in a user's own folder: rows by the largest entry of their vector."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.metadata.schema import IDENTITY, IMAGE_EMBEDDING, REASON, REASON_TYPE, Column
from clipmill.pipeline.dataset import Context, Inputs, Task
from clipmill.pipeline.stage import DatasetStage

LARGEST = Column("largest", pa.int32(), "0 up", "Of which entry.", names="cluster")


@dataclass(frozen=True, kw_only=True)
class Largest(DatasetStage):
    """The number of the largest entry of the vector; null without one.

    Error: of equal ones the first.
    """

    version = 1
    determinism = "exact"
    reads = (IMAGE_EMBEDDING,)
    writes = (LARGEST,)
    artifacts = (("centroids", "ways.parquet"),)
    reasons = ("no_embedding",)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        counted = ctx.reduce(counts, inputs.rows, added)
        ctx.map(partial(put, counted["rows_K"]), ["ways.parquet"])
        ctx.restore(ctx.map_shards(named, inputs.rows))


def entries(rows: pa.Table) -> Any:
    vector = rows[IMAGE_EMBEDDING.name].drop_null()
    width = vector.type.list_size
    return vector.combine_chunks().flatten().to_numpy().reshape(-1, width).argmax(axis=1)


def counts(rows: pa.Table) -> dict[str, Any]:
    width = rows[IMAGE_EMBEDDING.name].type.list_size
    return {"rows_K": np.bincount(entries(rows), minlength=width)}


def added(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {"rows_K": one["rows_K"] + other["rows_K"]}


def put(rows_K: Any, name: str, task: Task) -> dict[str, int]:
    centroid = np.eye(len(rows_K), dtype=np.float32).tolist()
    columns = {"cluster_id": range(len(rows_K)), "centroid": centroid, "rows": rows_K}
    path = task.worker.scratch / name
    inertia = np.where(rows_K > 0, rows_K / 4, 0.0)
    pq.write_table(pa.table({**columns, "inertia": inertia}), path)
    task.put_file(name, path)
    return {"rows": len(rows_K)}


def named(rows: pa.Table) -> pa.Table:
    valid_N = rows[IMAGE_EMBEDDING.name].is_valid().to_numpy()
    index_N = np.zeros(len(rows), np.int32)
    index_N[valid_N] = entries(rows)
    reason = [None if valid else "no_embedding" for valid in valid_N]
    return pa.table(
        {
            **{name: rows[name] for name in IDENTITY},
            LARGEST.name: pa.array(index_N, mask=~valid_N),
            REASON.name: pa.array(reason, pa.string()).cast(REASON_TYPE),
        }
    )
