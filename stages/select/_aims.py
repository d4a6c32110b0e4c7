"""Which centroids targets and rows are nearest to, and how many targets each has."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipmill.metadata.schema import CLUSTER_ID
from clipmill.metadata.storage import Storage
from clipmill.pipeline.dataset import Task
from clipmill.pipeline.errors import StageError
from clipmill.stages.ops.nearest import nearest_centre
from clipmill.stages.ops.outputs import put_table
from clipmill.stages.ops.vectors import as_matrix, unit_rows
from clipmill.stages.select._targets import EMBED_BOTH, ROWS, Nearest, Targets

# Shapes: N rows, M targets, D width of a vector, K centroids, T tasks.

FILE = "targets-{:05d}.parquet"  # in out/


@dataclass(frozen=True)
class Cells:
    """Centroids as rows look for the nearest: by inner product, or by direction."""

    size: int  # how many there are
    vector: NDArray[np.float32]  # (K, D) of those that may be nearest
    number: NDArray[np.int32]  # (K,)

    @classmethod
    def of(cls, vector_KD: NDArray[np.float32], nearest: Nearest) -> "Cells":
        if nearest == "inner_product":
            return cls(len(vector_KD), vector_KD, np.arange(len(vector_KD), dtype=np.int32))
        unit_KD = unit_rows(vector_KD)
        some = np.flatnonzero(~np.isnan(unit_KD).any(axis=1)).astype(np.int32)  # zero: no direction
        return cls(len(vector_KD), unit_KD[some], some)

    def nearest(self, row_ND: NDArray[np.float32]) -> NDArray[np.int32]:
        """(N,) number of the centroid with the greatest product, ties to the smaller number."""
        return self.number[nearest_centre(row_ND, self.vector, "dot")]


@lru_cache(maxsize=1)  # a worker asks for the same centroids with every shard
def opened(targets: Targets) -> Cells:
    """The centroids; StageError where they cannot be read, or none can be nearest."""
    cells = Cells.of(targets.read_centroids().vector, targets.nearest)
    if not len(cells.vector):
        raise StageError(
            found="centroids that are all zero: none has a direction",
            where=f"stage '{targets.stage}', keys `centroids` and `nearest`",
            do="give other centroids, or write nearest: inner_product",
        )
    return cells


def aimed(targets: Targets, item: dict[str, Any], task: Task) -> dict[str, Any]:
    """Stores out/targets-N.parquet: the centroids that are nearest to a target, and to how many.

    The number of `targets` of an item.
    """
    cells = opened(targets)
    count_K = np.zeros(cells.size, np.int64)
    for row_MD in gathered(targets, cells.vector.shape[1], item, task):
        count_K += np.bincount(cells.nearest(row_MD), minlength=len(count_K))
    near = np.flatnonzero(count_K)
    columns = {
        "task": pa.array([item["task"]] * len(near), pa.string()),
        CLUSTER_ID.name: pa.array(near, CLUSTER_ID.dtype),
        "targets": pa.array(count_K[near]),
    }
    put_table(FILE.format(item["number"]), pa.table(columns), task)
    return {"targets": int(count_K.sum())}


def gathered(
    targets: Targets, wide: int, item: dict[str, Any], task: Task
) -> Iterator[NDArray[np.float32]]:
    """The targets of an item, ROWS or so at a time; StageError where they are not so wide."""
    held: list[NDArray[np.float32]] = []
    for row_MD in map(as_matrix, targets.vectors(item, task)):
        if len(row_MD) and row_MD.shape[1] != wide:
            found = f"embeddings {row_MD.shape[1]} wide, and the centroids are {wide} wide"
            raise StageError(found, targets.at(item.get("file", item["task"])), EMBED_BOTH)
        held += [row_MD] if len(row_MD) else []
        if sum(map(len, held)) >= ROWS:
            yield np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)


@dataclass(frozen=True)
class Aims:
    """Of each centroid, how many targets it is nearest to, and which tasks have one."""

    count: NDArray[np.int64]  # (K,)
    by_task: NDArray[np.bool_]  # (T, K)


@lru_cache(maxsize=1)  # as centroids are
def aims(targets: Targets) -> Aims:
    """What `aimed` has stored in the stage's folder."""
    count_K = np.zeros(opened(targets).size, np.int64)
    by_task_TK = np.zeros((1 + targets.tasks[-1], len(count_K)), bool)
    for number, task in enumerate(targets.tasks):
        with Storage(targets.folder).open(f"out/{FILE.format(number)}") as source:
            near = pq.read_table(source)
        cluster = near[CLUSTER_ID.name].to_numpy()
        count_K[cluster] += near["targets"].to_numpy()
        by_task_TK[task, cluster] = True
    return Aims(count_K, by_task_TK)
