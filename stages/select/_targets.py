"""Target embeddings: pictures of tasks, vectors in Parquet files, a column of an export."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipmill.metadata.fingerprint import digest
from clipmill.metadata.globs import open_pool
from clipmill.metadata.keys import redacted
from clipmill.metadata.outputs import Outputs
from clipmill.metadata.schema import CLUSTER_ID
from clipmill.metadata.storage import Storage
from clipmill.pipeline.dataset import Inputs, Task
from clipmill.pipeline.errors import StageError
from clipmill.stages.models.images import embedder_of
from clipmill.stages.ops.tables.exports import summary_of
from clipmill.stages.ops.tables.parquet_rows import sizes_of_groups
from clipmill.stages.ops.tables.rows import put_table
from clipmill.stages.ops.tasks import evaluation
from clipmill.stages.ops.tasks.evaluation import PARQUET, Request
from clipmill.stages.ops.vectors.centroids import MARK, Centroids, file_or_folder
from clipmill.stages.ops.vectors.centroids import read as read_centroids
from clipmill.stages.ops.vectors.matrices import as_matrix, unit_rows
from clipmill.stages.ops.vectors.nearest import nearest_centre

# Shapes: N rows, M targets, D width of a vector, K centroids, T tasks.

ROWS = 4096  # vectors compared with the centroids at a time
SPAN = 2**16  # rows of a file that one task compares
MODEL = MARK + "model"  # key of the model in the schema of a Parquet of vectors
EMBED_BOTH = "embed both with one model"
Nearest = Literal["inner_product", "cosine"]


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Locations of targets and centroids, as a recipe names them, and how they are compared."""

    targets: str
    centroids: str
    column: str
    nearest: Nearest
    model: str | None
    stage: str
    target_folder: str | None  # of `targets: "stage:x"`
    centroid_folder: str | None
    model_folder: str | None
    folder: str  # of the stage
    sha256: str = ""  # of the centroids: a key of the worker's cache
    digest: str = ""  # of the targets: likewise
    tasks: tuple[int, ...] = ()  # the number of each item's task, ascending

    def where(self, key: Literal["targets", "column"]) -> str:
        value = redacted(self.targets) if key == "targets" else self.column
        return f"stage '{self.stage}', key `{key}`: {value}"

    def at(self, file: str) -> str:
        where = self.where("targets")
        return where if where.endswith(file) else f"{where}, {file}"

    @property
    def place(self) -> tuple[Storage, str | None]:
        return file_or_folder(self.targets, self.where("targets"))

    def read_centroids(self) -> Centroids:
        return read_centroids(self.centroid_folder, self.centroids, f"stage '{self.stage}'")

    def items(self) -> list[dict[str, Any]]:
        """Returns the tasks, or pieces of files: `number`, `task`, and the digest of its bytes.

        Vectors have their `file` and the row `start` of a piece; pictures have neither.
        """
        if self.target_folder is not None:
            items = self._exported(summary_of(self.target_folder, self.stage, "targets"))
        else:
            items = self._outside()
        return [{**item, "number": number} for number, item in enumerate(items)]

    def _outside(self) -> list[dict[str, Any]]:
        folder, file = self.place
        if file is None:
            tasks = evaluation.tasks_at(folder.uri, self.stage, "targets")
        else:
            sha256 = evaluation.file_digest(folder, file)
            tasks = [{"task": file.removesuffix(PARQUET), "sha256": sha256}]
        files = {entry.name for entry in folder.entries()}
        items = []
        for task in tasks:
            file = task["task"] + PARQUET
            rows = self._rows(file) if file in files else None
            items += [task] if rows is None else spans({**task, "file": file}, rows)
        return items

    def _exported(self, dataset: dict[str, Any]) -> list[dict[str, Any]]:
        if self.column not in (columns := [name for name, _ in dataset["columns"]]):
            found = f"no column '{self.column}' in the export"
            do = f"add it to the export's `columns`; it has {', '.join(columns)}"
            raise StageError(found, self.where("targets"), do)
        task = self.targets.removeprefix("stage:")
        files = [{"task": task, **file} for file in dataset["files"]]
        return [item for file in files for item in spans(file, file["rows"])]

    def _rows(self, file: str) -> int | None:
        """Returns the rows of a Parquet of vectors; None if it has pictures to be embedded."""
        with self._opened(file) as parquet:
            name = evaluation.column_of(parquet.schema_arrow, self._request(), self.at(file))
            return int(parquet.metadata.num_rows) if name == self.column else None

    def model_of(self, items: list[dict[str, Any]], centroids: str | None, inputs: Inputs) -> str:
        """Returns the model of all embeddings, "" if nothing names one.

        StageError if two differ, or if a file of vectors names none.
        """
        named = {
            f"column '{self.column}'": inputs.model_of.get(self.column),
            "`centroids`": centroids,
            "`model`": inputs.own_model,
            "`targets`": inputs.target_model_of.get(self.column),
        }
        if self.target_folder is None:
            files = dict.fromkeys(item["file"] for item in items if "file" in item)
            named |= {f"`targets`: {file}": self._model_in(file) for file in files}
        known = [(what, model) for what, model in named.items() if model]
        for what, model in known[1:]:
            if model != known[0][1]:
                found = f"{what} is of model '{model}', and {known[0][0]} of '{known[0][1]}'"
                raise StageError(found, self.where("targets"), EMBED_BOTH)
        return known[0][1] if known else ""

    def _model_in(self, file: str) -> str:
        with self._opened(file) as parquet:
            marks = parquet.schema_arrow.metadata or {}
        if MODEL.encode() not in marks:
            found = f"{file} does not say which model made its '{self.column}'"
            do = f"write {MODEL} into the metadata of its schema"
            raise StageError(found, self.where("targets"), do)
        return marks[MODEL.encode()].decode()

    def vectors(self, item: dict[str, Any], task: Task) -> Iterator[pa.Array]:
        """Yields the targets of an item, some at a time; rows without a vector are skipped."""
        if "file" in item:
            yield from self._vectors(item["file"], item["start"])
            return
        measure = embedder_of(self.model, self.model_folder, task.worker) or self.unembedded
        request = replace(self._request(), measure=measure)
        for table in evaluation.read(self.place[0].uri, item["task"], request, self.stage):
            yield table["value"]

    def _vectors(self, file: str, start: int) -> Iterator[pa.Array]:
        width, stop = None, start + SPAN
        with self._opened(file) as parquet:
            first = np.cumsum([0, *sizes_of_groups(parquet)])
            groups = [g for g, row in enumerate(first[:-1]) if row < stop and first[g + 1] > start]
            row = int(first[groups[0]]) if groups else 0
            for batch in parquet.iter_batches(ROWS, row_groups=groups, columns=[self.column]):
                row_N = np.arange(row, row + len(batch))
                here_N = (row_N >= start) & (row_N < stop)
                here_N &= batch[self.column].is_valid().to_numpy(zero_copy_only=False)
                vectors = batch[self.column].filter(pa.array(here_N))
                keys = row_N[here_N].astype(str).tolist()
                width = evaluation.checked_width(vectors, width, f"{self.at(file)}, row", keys)
                yield vectors
                row += len(batch)

    @contextmanager
    def _opened(self, file: str) -> Iterator[pq.ParquetFile]:
        """Opens a file of vectors; StageError if it cannot be read."""
        if self.target_folder is not None:
            with Outputs(Storage(self.target_folder)).parquet(file) as parquet:
                yield parquet
            return
        try:
            with self.place[0].open(file) as source:
                yield pq.ParquetFile(source)
        except (pa.ArrowException, OSError) as error:
            found = f"no Parquet that can be read: {error}"
            do = "name a Parquet of vectors, or write it again"
            raise StageError(found, self.at(file), do) from None

    def _request(self) -> Request:
        column = pa.field(self.column, pa.list_(pa.float32()))
        return Request(column=column, measure=self.unembedded, key="targets")

    def unembedded(self, pictures: list) -> NDArray[np.float32]:
        raise StageError(
            found=f"pictures, and nothing that makes a '{self.column}' of them",
            where=f"stage '{self.stage}', keys `targets` and `model`",
            do="name the model of the pool's embeddings, or give Parquet files with that column",
        )


def listing_digest(targets: str) -> str:
    """Returns a digest of the names, sizes and times of a folder's files, or of the one file."""
    folder, file = open_pool(targets)
    if file == "**":
        return evaluation.listing_digest(targets)
    info = folder.fs.get_file_info(folder.locate(file))
    return digest([info.size, info.mtime_ns])


def spans(file: dict[str, Any], rows: int) -> list[dict[str, Any]]:
    """Cuts a file into pieces of SPAN rows, so that several workers compare it."""
    return [{**file, "start": start} for start in range(0, max(rows, 1), SPAN)]


FILE = "targets-{:05d}.parquet"  # in out/


@dataclass(frozen=True)
class Cells:
    """Centroids prepared for a search of the nearest: by inner product, or by direction."""

    size: int  # how many there are
    vector: NDArray[np.float32]  # (K, D) of those that may be nearest
    number: NDArray[np.int32]  # (K,)

    @classmethod
    def of(cls, vector_KD: NDArray[np.float32], nearest: Nearest) -> "Cells":
        if nearest == "inner_product":
            return cls(len(vector_KD), vector_KD, np.arange(len(vector_KD), dtype=np.int32))
        unit_KD = unit_rows(vector_KD)
        # A zero vector has no direction.
        defined = np.flatnonzero(~np.isnan(unit_KD).any(axis=1)).astype(np.int32)
        return cls(len(vector_KD), unit_KD[defined], defined)

    def nearest(self, row_ND: NDArray[np.float32]) -> NDArray[np.int32]:
        """Returns (N,) the number of the centroid of greatest product, ties to the smaller."""
        return self.number[nearest_centre(row_ND, self.vector, "dot")]


@lru_cache(maxsize=1)  # a worker needs the same centroids for every shard
def opened(targets: Targets) -> Cells:
    """Returns the centroids; StageError if they cannot be read, or none can be nearest."""
    cells = Cells.of(targets.read_centroids().vector, targets.nearest)
    if not len(cells.vector):
        raise StageError(
            found="centroids that are all zero: none has a direction",
            where=f"stage '{targets.stage}', keys `centroids` and `nearest`",
            do="give other centroids, or write nearest: inner_product",
        )
    return cells


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
