"""Target embeddings, and the centroids that they are nearest to.

Targets are the pictures of evaluation tasks, vectors in Parquet files, or a column of an export.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from metadata.fingerprint import digest
from metadata.globs import open_pool
from metadata.keys import redacted
from metadata.outputs import Outputs
from metadata.schema import CLUSTER_ID, UID
from metadata.storage import Storage
from pipeline.dataset import Inputs, Task
from pipeline.errors import StageError
from stages.models.images import embedder_of
from stages.ops import evaluation
from stages.ops.centroids import MARK, Centroids
from stages.ops.centroids import read as read_centroids
from stages.ops.evaluation import PARQUET, Wanted
from stages.ops.exports import summary_of
from stages.ops.nearest import nearest_centre
from stages.ops.vectors import as_matrix, unit_rows

# Shapes: M targets, D width of a vector, K centroids, T tasks.

ROWS = 4096  # vectors that look for their centroid at a time
MODEL = MARK + "model"  # what a Parquet of vectors says in its schema
EMBED_BOTH = "embed both with one model"
Nearest = Literal["inner_product", "cosine"]


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Where targets and centroids are, as a recipe names them, and what they are asked for."""

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
    sha256: str = ""  # of the centroids, so that a worker keeps no others
    files: tuple[tuple[int, str, str], ...] = ()  # that `aimed` stored: task, name, digest

    def where(self, key: Literal["targets", "column"]) -> str:
        value = redacted(self.targets) if key == "targets" else self.column
        return f"stage '{self.stage}', key `{key}`: {value}"

    @property
    def place(self) -> tuple[Storage, str | None]:
        return place_of(self.targets, self.where("targets"))

    def read_centroids(self) -> Centroids:
        return read_centroids(self.centroid_folder, self.centroids, f"stage '{self.stage}'")

    def items(self) -> list[dict[str, Any]]:
        """What has targets, in turn: `task`, `file` without a suffix, digest of its bytes."""
        if self.target_folder is not None:
            dataset = summary_of(self.target_folder, self.stage)
            if self.column not in (held := [name for name, _ in dataset["columns"]]):
                do = f"add it to the export's `columns`; it has {', '.join(held)}"
                raise StageError(
                    f"no column '{self.column}' in the export", self.where("targets"), do
                )
            task = self.targets.removeprefix("stage:")
            return [
                {"task": task, "file": f["file"].removesuffix(PARQUET), "sha256": f["sha256"]}
                for f in dataset["files"]
            ]
        folder, file = self.place
        if file is None:
            tasks = evaluation.tasks_at(folder.uri, self.stage, "targets")
            return [{**task, "file": task["task"]} for task in tasks]
        name = file.removesuffix(PARQUET)
        return [{"task": name, "file": name, "sha256": evaluation.file_digest(folder, file)}]

    def model_of(self, items: list[dict[str, Any]], centroids: str | None, inputs: Inputs) -> str:
        """The model of all embeddings, empty where nothing names one.

        StageError where two differ, or where a file of vectors names none.
        """
        named = {
            f"column '{self.column}'": inputs.model_of.get(self.column),
            "`centroids`": centroids,
            "`model`": inputs.own_model,
            "`targets`": inputs.target_model_of.get(self.column),
        }
        for file in [] if self.target_folder else [item["file"] + PARQUET for item in items]:
            folder, _ = self.place
            if has_vectors(folder, file, self.column):
                named[f"`targets`: {file}"] = self.model_in(folder, file)
        known = [(what, model) for what, model in named.items() if model]
        for what, model in known[1:]:
            if model != known[0][1]:
                found = f"{what} is of model '{model}', and {known[0][0]} of '{known[0][1]}'"
                raise StageError(found, self.where("targets"), EMBED_BOTH)
        return known[0][1] if known else ""

    def model_in(self, folder: Storage, file: str) -> str:
        """The model that a Parquet of vectors names; StageError where it names none."""
        with folder.open(file) as source:
            marks = pq.read_schema(source).metadata or {}
        if MODEL.encode() not in marks:
            found = f"{file} does not say which model made its '{self.column}'"
            raise StageError(
                found, self.where("targets"), f"write {MODEL} into the metadata of its schema"
            )
        return marks[MODEL.encode()].decode()

    def vectors(self, item: dict[str, Any], task: Task) -> Iterator[tuple[str, pa.Array]]:
        """The targets of an item, ROWS at a time or so, each with where it is read."""
        if self.target_folder is not None:
            yield from self._of_export(item["file"] + PARQUET)
            return
        wanted = Wanted(
            column=pa.field(self.column, pa.list_(pa.float32())),
            measure=embedder_of(self.model, self.model_folder, task.worker) or self.unembedded,
            key="targets",
        )
        held: list[pa.Table] = []
        for table in evaluation.read(self.place[0].uri, item["file"], wanted, self.stage):
            held.append(table)
            if sum(map(len, held)) >= ROWS:
                yield self.where("targets"), pa.concat_tables(held)["value"]
                held = []
        if held:
            yield self.where("targets"), pa.concat_tables(held)["value"]

    def _of_export(self, file: str) -> Iterator[tuple[str, pa.Array]]:
        assert self.target_folder is not None
        width, where = None, f"{self.where('targets')}, {file}, uid"
        with Outputs(Storage(self.target_folder)).parquet(file) as parquet:
            for batch in parquet.iter_batches(ROWS, columns=[UID.name, self.column]):
                batch = batch.filter(batch[self.column].is_valid())
                keys = [uid.hex() for uid in batch[UID.name].to_pylist()]
                width = evaluation.checked_width(batch[self.column], width, where, keys)
                yield where, batch[self.column]

    def unembedded(self, pictures: list) -> NDArray[np.float32]:
        raise StageError(
            found=f"pictures, and nothing that makes a '{self.column}' of them",
            where=f"stage '{self.stage}', keys `targets` and `model`",
            do="name the model of the pool's embeddings, or give Parquet files with that column",
        )


def place_of(targets: str, where: str) -> tuple[Storage, str | None]:
    """The folder of tasks, and the one file in it that is meant, if one is."""
    folder, pattern = open_pool(targets)
    if pattern == "**":
        return folder, None
    if not pattern.endswith(PARQUET):
        do = "write the vectors as Parquet, as docs/clusters.md shows"
        raise StageError(f"'{pattern}' is no Parquet file", where, do)
    return folder, pattern


def listing_digest(targets: str) -> str:
    """A digest that changes with the name, size or time of a file of a folder, or of the file."""
    folder, file = open_pool(targets)
    if file == "**":
        return evaluation.listing_digest(targets)
    info = folder.fs.get_file_info(folder.locate(file))
    return digest([info.size, info.mtime_ns])


def has_vectors(folder: Storage, file: str, column: str) -> bool:
    """Whether this is a Parquet file with that column; pictures are embedded by `model`."""
    try:
        with folder.open(file) as source:
            return column in pq.read_schema(source).names
    except (FileNotFoundError, pa.ArrowException):
        return False  # a task's folder; what cannot be read is told of where it is read


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
    """The centroids; StageError where they cannot be read."""
    return Cells.of(targets.read_centroids().vector, targets.nearest)


def aimed(targets: Targets, item: dict[str, Any], task: Task) -> dict[str, Any]:
    """Stores out/FILE.parquet: the centroids that are nearest to a target, and to how many.

    The number of `targets` of an item.
    """
    cells = opened(targets)
    wide = cells.vector.shape[1]
    count_K = np.zeros(cells.size, np.int64)
    for where, vectors in targets.vectors(item, task):
        row_MD = as_matrix(vectors)
        if len(row_MD) and row_MD.shape[1] != wide:
            found = f"embeddings {row_MD.shape[1]} wide, and the centroids are {wide} wide"
            raise StageError(found, where, EMBED_BOTH)
        count_K += np.bincount(cells.nearest(row_MD), minlength=len(count_K))
    near = np.flatnonzero(count_K)
    table = pa.table(
        {
            CLUSTER_ID.name: pa.array(near, CLUSTER_ID.dtype),
            "targets": pa.array(count_K[near]),
        }
    )
    path = task.worker.scratch / f"{item['file']}{PARQUET}"
    pq.write_table(table, path, write_page_checksum=task.page_checksums)
    task.put_file(path.name, path)
    return {"targets": int(count_K.sum())}


@dataclass(frozen=True)
class Aims:
    """Of each centroid, how many targets it is nearest to, and which tasks have one."""

    count: NDArray[np.int64]  # (K,)
    by_task: NDArray[np.bool_]  # (T, K)


@lru_cache(maxsize=1)  # as centroids are
def aims(targets: Targets) -> Aims:
    """What `aimed` has stored in the stage's folder."""
    count_K = np.zeros(opened(targets).size, np.int64)
    by_task_TK = np.zeros((1 + targets.files[-1][0], len(count_K)), bool)
    for number, file, _ in targets.files:
        with Storage(targets.folder).open(f"out/{file}{PARQUET}") as source:
            near = pq.read_table(source)
        cluster = near[CLUSTER_ID.name].to_numpy()
        count_K[cluster] += near["targets"].to_numpy()
        by_task_TK[number, cluster] = True
    return Aims(count_K, by_task_TK)
