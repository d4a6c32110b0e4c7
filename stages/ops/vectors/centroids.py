"""Stores and reads centroids of clusters: what cluster.kmeans leaves for other stages.

A Parquet of a row per cluster, by its number: `cluster_id`, `centroid`, `rows`, `inertia`. Its
schema has `clipmill.metric`, `clipmill.column` and `clipmill.model`: how the clusters were found,
the column of their embeddings, and the model that made it.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipmill.metadata.globs import open_pool
from clipmill.metadata.keys import redacted
from clipmill.metadata.outputs import Outputs
from clipmill.metadata.schema import CLUSTER_ID
from clipmill.metadata.storage import Storage, open_uri
from clipmill.pipeline.errors import StageError
from clipmill.stages.ops.outside import named, need_file
from clipmill.stages.ops.vectors.matrices import as_matrix, from_matrix, holds_vectors

# Shapes: K clusters, D width of a vector.

FILE = "centroids.parquet"
MARK = "clipmill."
Metric = Literal["cosine", "euclidean"]


@dataclass(frozen=True, kw_only=True)
class Centroids:
    """Clusters by number.

    With the metric `cosine` a centroid is a direction at length 1, else the mean of its rows.
    `model` is None if nothing says which one made the embeddings.
    """

    vector: NDArray[np.float32]  # (K, D)
    metric: Metric = "cosine"
    model: str | None = None

    def __len__(self) -> int:
        return len(self.vector)


def to_table(
    vector_KD: NDArray, rows_K: NDArray, inertia_K: NDArray, **marks: str | None
) -> pa.Table:
    """Returns the table of out/centroids.parquet; `marks` are its metric, column and model."""
    table = pa.table(
        {
            CLUSTER_ID.name: pa.array(range(len(vector_KD)), CLUSTER_ID.dtype),
            "centroid": from_matrix(vector_KD),
            "rows": pa.array(rows_K, pa.int64()),
            "inertia": pa.array(inertia_K, pa.float64()),
        }
    )
    return table.replace_schema_metadata({MARK + k: v for k, v in marks.items() if v})


def file_or_folder(uri: str, where: str) -> tuple[Storage, str | None]:
    """Returns the folder, and the one Parquet file in it if that is named."""
    folder, pattern = open_pool(uri)
    if pattern == "**":
        return folder, None
    if not pattern.endswith(".parquet"):
        do = "write the vectors as Parquet, as docs/clusters.md shows"
        raise StageError(f"'{pattern}' is no Parquet file", where, do)
    return folder, pattern


def look_for(setting: str | None) -> None:
    """Raises StageError if a setting `centroids` names a file that does not exist."""
    if uri := named(setting):
        do = "name a Parquet of centroids, or a stage of this recipe as stage:NAME"
        need_file(uri, "centroids", do)


def read(folder: str | None, setting: str, where: str) -> Centroids:
    """Returns the centroids in a stage's folder, else those of the file that the setting names.

    StageError if they cannot be read, or a centroid is null or not finite; `where` names the stage.
    """
    place = f"{where}, key `centroids`: {redacted(folder or setting)}"
    try:
        if folder is not None:
            source = pa.BufferReader(Outputs(Storage(folder)).read(FILE))
        else:
            store, path = open_uri(setting)
            source = store.open_input_file(path)
        with source:
            return _centroids(pq.read_table(source), place)
    except FileNotFoundError:
        do = "name a stage that gives centroids as stage:NAME, or a Parquet of them"
        raise StageError("no such file", place, do) from None
    except (pa.ArrowException, OSError) as error:
        do = "name a Parquet of centroids, or write it again"
        raise StageError(f"no Parquet that can be read: {error}", place, do) from None


def _centroids(table: pa.Table, place: str) -> Centroids:
    if "centroid" not in table.column_names or not len(table):
        found = "no column `centroid`" if len(table) else "no row"
        has = ", ".join(table.column_names)
        do = "give a column `centroid` of vectors, a row a cluster"
        raise StageError(found, place, f"{do}; it has {has}" if len(table) else do)
    if CLUSTER_ID.name in table.column_names:
        table = table.sort_by(CLUSTER_ID.name)
        if table[CLUSTER_ID.name].to_pylist() != list(range(len(table))):
            do = f"number `{CLUSTER_ID.name}` so"
            raise StageError("numbers that are not 0, 1, 2 …", place, do)
    dtype = table.schema.field("centroid").type
    if not holds_vectors(dtype):
        raise StageError(f"a column `centroid` of {dtype}", place, "write it as lists of floats")
    try:
        vector_KD = as_matrix(table["centroid"])
    except ValueError as error:
        raise StageError(str(error), place, "write vectors of one width") from None
    bad_K = ~np.isfinite(vector_KD).all(axis=1)
    if bad_K.any():
        found = f"centroid {int(bad_K.argmax())} is null, or not finite"
        raise StageError(found, place, "leave such rows out, and number the others anew")
    marks = {
        key.decode().removeprefix(MARK): value.decode()
        for key, value in (table.schema.metadata or {}).items()
        if key.decode().startswith(MARK)
    }
    metric = marks.get("metric", "cosine")
    if metric not in get_args(Metric):
        do = f"say one of: {', '.join(get_args(Metric))}"
        raise StageError(f"{MARK}metric is {metric!r}", place, do)
    return Centroids(vector=vector_KD, metric=metric, model=marks.get("model"))  # as just checked
