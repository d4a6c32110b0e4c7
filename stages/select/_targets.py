"""Target embeddings: pictures of tasks, vectors in Parquet files, a column of an export."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipmill.metadata.schema import CLUSTER_ID
from clipmill.metadata.storage import Storage
from clipmill.pipeline.dataset import Task
from clipmill.pipeline.errors import StageError
from clipmill.stages.models.images import embedder_of
from clipmill.stages.ops.tables.rows import put_table
from clipmill.stages.ops.tasks import evaluation
from clipmill.stages.ops.tasks.evaluation import PARQUET, Request
from clipmill.stages.ops.vectors.centroids import Centroids
from clipmill.stages.ops.vectors.centroids import read as read_centroids
from clipmill.stages.ops.vectors.matrices import as_matrix, unit_rows
from clipmill.stages.ops.vectors.nearest import nearest_centre
from clipmill.stages.ops.vectors.targets import EMBED_BOTH, ROWS, TargetVectors, spans

# Shapes: N rows, M targets, D width of a vector, K centroids, T tasks.

FILE = "targets-{:05d}.parquet"  # in out/
Nearest = Literal["inner_product", "cosine"]


@dataclass(frozen=True, kw_only=True)
class Targets(TargetVectors):
    """Targets and centroids, and how they are compared."""

    centroids: str
    nearest: Nearest
    model: str | None
    centroid_folder: str | None
    model_folder: str | None
    folder: str  # of the stage
    sha256: str = ""  # of the centroids: a key of the worker's cache
    digest: str = ""  # of the targets: likewise
    tasks: tuple[int, ...] = ()  # the number of each item's task, ascending

    def read_centroids(self) -> Centroids:
        return read_centroids(self.centroid_folder, self.centroids, f"stage '{self.stage}'")

    def items(self) -> list[dict[str, Any]]:
        """Returns the tasks, or pieces of files: `number`, `task`, and the digest of its bytes.

        Vectors have their `file` and the row `start` of a piece; pictures have neither.
        """
        folder = self.target_folder
        items = self._outside() if folder is None else self.exported(folder)
        return [{**item, "number": number} for number, item in enumerate(items)]

    def _outside(self) -> list[dict[str, Any]]:
        folder, file = self.place
        if file is None:
            tasks = evaluation.tasks_at(folder.uri, self.stage, "targets")
        else:
            sha256 = folder.sha256(file)
            tasks = [{"task": file.removesuffix(PARQUET), "sha256": sha256}]
        files = {entry.name for entry in folder.entries()}
        items = []
        for task in tasks:
            file, is_vectors = task["task"] + PARQUET, False  # else pictures, to be embedded
            if file in files:
                with self.opened(file) as parquet:
                    schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
                column = evaluation.column_of(schema, self._request(), self.at(file))
                is_vectors = column == self.column
            items += spans({**task, "file": file}, rows) if is_vectors else [task]
        return items

    def vectors(self, item: dict[str, Any], task: Task) -> Iterator[pa.Array]:
        """Yields the targets of an item, some at a time; rows without a vector are skipped."""
        if "file" in item:
            width, where = None, f"{self.at(item['file'])}, row"
            for vectors, row_N in self.read(item["file"], item["start"]):
                width = evaluation.checked_width(vectors, width, where, row_N.astype(str).tolist())
                yield vectors
            return
        measure = embedder_of(self.model, self.model_folder, task.worker) or self.unembedded
        request = replace(self._request(), measure=measure)
        for table in evaluation.read(self.place[0].uri, item["task"], request, self.stage):
            yield table["value"]

    def _request(self) -> Request:
        column = pa.field(self.column, pa.list_(pa.float32()))
        return Request(column=column, measure=self.unembedded, key="targets")

    def unembedded(self, pictures: list) -> NDArray[np.float32]:
        raise StageError(
            found=f"pictures, and nothing that makes a '{self.column}' of them",
            where=f"stage '{self.stage}', keys `targets` and `model`",
            do="name the model of the pool's embeddings, or give Parquet files with that column",
        )


@dataclass(frozen=True)
class Cells:
    """Centroids prepared for a search of the nearest: by inner product, or by direction."""

    size: int  # how many there are
    vector: NDArray[np.float32]  # (K, D) of those that may be nearest
    number: NDArray[np.int32]  # (K,)

    def nearest(self, row_ND: NDArray[np.float32]) -> NDArray[np.int32]:
        """Returns (N,) the number of the centroid of greatest product, ties to the smaller."""
        return self.number[nearest_centre(row_ND, self.vector, "dot")]


@lru_cache(maxsize=1)  # a worker needs the same centroids for every shard
def opened(targets: Targets) -> Cells:
    """Returns the centroids; StageError if they cannot be read, or none can be nearest."""
    vector_KD = targets.read_centroids().vector
    ready_KD = vector_KD if targets.nearest == "inner_product" else unit_rows(vector_KD)
    number = np.flatnonzero(~np.isnan(ready_KD).any(axis=1))  # a zero vector has no direction
    if not len(number):
        raise StageError(
            found="centroids that are all zero: none has a direction",
            where=f"stage '{targets.stage}', keys `centroids` and `nearest`",
            do="give other centroids, or write nearest: inner_product",
        )
    return Cells(len(vector_KD), ready_KD[number], number.astype(np.int32))


def count_targets(targets: Targets, item: dict[str, Any], task: Task) -> dict[str, Any]:
    """Stores out/targets-N.parquet: the centroids nearest to an item's targets, with counts.

    Returns how many `targets` the item has.
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
    """Yields an item's targets, about ROWS at a time; StageError if their width is another."""
    parts: list[NDArray[np.float32]] = []
    for row_MD in map(as_matrix, targets.vectors(item, task)):
        if len(row_MD) and row_MD.shape[1] != wide:
            found = f"embeddings {row_MD.shape[1]} wide, and the centroids are {wide} wide"
            raise StageError(found, targets.at(item.get("file", item["task"])), EMBED_BOTH)
        parts += [row_MD] if len(row_MD) else []
        if sum(map(len, parts)) >= ROWS:
            yield np.concatenate(parts)
            parts = []
    if parts:
        yield np.concatenate(parts)


@dataclass(frozen=True)
class TargetCounts:
    """Number of targets by nearest centroid, and the tasks that have one there."""

    count: NDArray[np.int64]  # (K,)
    by_task: NDArray[np.bool_]  # (T, K)


@lru_cache(maxsize=1)  # for every shard, as the centroids
def target_counts(targets: Targets) -> TargetCounts:
    """Reads what `count_targets` has stored in the stage's folder."""
    count_K = np.zeros(opened(targets).size, np.int64)
    by_task_TK = np.zeros((1 + targets.tasks[-1], len(count_K)), bool)
    for number, task in enumerate(targets.tasks):
        with Storage(targets.folder).open(f"out/{FILE.format(number)}") as source:
            near = pq.read_table(source)
        cluster = near[CLUSTER_ID.name].to_numpy()
        count_K[cluster] += near["targets"].to_numpy()
        by_task_TK[task, cluster] = True
    return TargetCounts(count_K, by_task_TK)
