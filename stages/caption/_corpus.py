"""Reads texts and vectors, of rows or of Parquet files, and finds the texts nearest to each row."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipmill.metadata.globs import open_pool
from clipmill.metadata.keys import redacted
from clipmill.metadata.schema import POSITION, REASON, SHARD, TEXT, UID
from clipmill.pipeline.errors import StageError
from clipmill.stages.ops.tables.combined import Combined
from clipmill.stages.ops.vectors import centroids
from clipmill.stages.ops.vectors.centroids import MARK
from clipmill.stages.ops.vectors.matrices import as_matrix, unit_rows
from clipmill.stages.ops.vectors.nearest import nearest_centre, nearest_exact

# Shapes: N rows, K centroids or texts, D width of a vector, m texts of each row (fewer if there are
# fewer).

VECTOR = "vector"  # a column of unit vectors
MODEL = f"{MARK}model".encode()


@dataclass(frozen=True)
class ParquetTexts(Combined):
    """Parquet files of texts and vectors as shards, one per row group."""

    path: str
    column: str
    groups: tuple[tuple[str, int], ...]  # file, and number of the row group in it

    @staticmethod
    def of(path: str, column: str, where: str) -> "tuple[ParquetTexts, str]":
        """Returns the texts, and the model of all files; raises StageError if a file is unfit."""
        place = f"{where}, key `corpus`: {redacted(path)}"
        groups: list[tuple[str, int]] = []
        models: set[str] = set()
        for name, parquet in opened(path, place):
            schema = parquet.schema_arrow
            missing = [needed for needed in (TEXT.name, column) if needed not in schema.names]
            if missing:
                found = f"no column '{missing[0]}' in {name}"
                has = ", ".join(schema.names)
                raise StageError(found, place, f"write `text` and `{column}` a row; it has {has}")
            marks = schema.metadata or {}
            if MODEL not in marks:
                do = f"write {MODEL.decode()} into the metadata of its schema"
                raise StageError(f"{name} does not say which model made '{column}'", place, do)
            models.add(marks[MODEL].decode())
            groups += [(name, number) for number in range(parquet.num_row_groups)]
        if len(models) > 1:
            found = f"texts of {len(models)} models: {', '.join(sorted(models))}"
            raise StageError(found, place, "embed all texts with one model")
        return ParquetTexts(path, column, tuple(groups)), models.pop()

    def __len__(self) -> int:
        return len(self.groups)

    def table(self, index: int) -> pa.Table:
        name, group = self.groups[index]
        storage, _ = open_pool(self.path)
        with storage.open(name) as source, pq.ParquetFile(source) as parquet:
            return parquet.read_row_group(group, columns=[TEXT.name, self.column])


def opened(path: str, place: str) -> Iterator[tuple[str, pq.ParquetFile]]:
    """Yields the Parquet files at a path; raises StageError if there is none, or one is damaged."""
    from clipmill.stages.ops.tables.pools import list_files

    storage, _ = open_pool(path)
    for file in list_files(path, (".parquet",), place):
        try:
            with storage.open(file["path"]) as source, pq.ParquetFile(source) as parquet:
                yield file["path"], parquet
        except (pa.ArrowException, OSError) as error:
            found = f"no Parquet that can be read: {error}"
            raise StageError(found, place, "write it again, or leave it out") from None


CELL = "cell"
# A row and one cell it searches; or (shard is null) a text and its cell.
CELL_SCHEMA = pa.schema(
    [
        *((column.name, column.dtype) for column in (UID, SHARD, POSITION, TEXT)),
        (CELL, pa.int32()),
        (VECTOR, pa.list_(pa.float32())),
        (REASON.name, pa.string()),
    ]
)


@dataclass(frozen=True)
class Cells:
    """The location of the cells' centroids."""

    folder: str | None
    setting: str
    digest: str  # of the file, as a key of the worker's cache
    where: str


@lru_cache(maxsize=1)
def centres_of(cells: Cells) -> NDArray[np.float32]:
    """Reads (K, D) the centroids as unit vectors."""
    unit_KD = unit_rows(centroids.read(cells.folder, cells.setting, cells.where).vector)
    return unit_KD[np.isfinite(unit_KD).all(axis=1)]


def check_width(row_ND: NDArray, centre_KD: NDArray, where: str) -> None:
    """Checks that vectors are as wide as the centroids; raises StageError."""
    if len(row_ND) and row_ND.shape[1] != centre_KD.shape[1]:
        found = f"embeddings {row_ND.shape[1]} wide, and centroids {centre_KD.shape[1]} wide"
        raise StageError(found, f"{where}, key `centroids`", "name centroids of the same model")


def in_cells(cells: Cells, texts: pa.Table) -> pa.Table:
    """Returns texts as rows of CELL_SCHEMA, each in its nearest cell; other columns null."""
    vector_KD = as_matrix(texts[VECTOR])
    check_width(vector_KD, centres_of(cells), cells.where)
    known = {
        TEXT.name: texts["text"],
        CELL: nearest_centre(vector_KD, centres_of(cells)),
        VECTOR: texts[VECTOR].cast(CELL_SCHEMA.field(VECTOR).type),
    }
    others = [field for field in CELL_SCHEMA if field.name not in known]
    nulls = {field.name: pa.nulls(len(texts), field.type) for field in others}
    return pa.table({**known, **nulls}).select(CELL_SCHEMA.names).cast(CELL_SCHEMA)


def distinct_sorted(texts: pa.Table) -> pa.Array:
    """Returns indices of the texts, distinct in each cell, sorted by cell and bytes."""
    frame = pl.DataFrame(texts.select([CELL, TEXT.name])).with_row_index("place")
    once = frame.unique([CELL, TEXT.name], keep="first", maintain_order=True)
    return once.sort(CELL, TEXT.name)["place"].to_arrow()


NEAR = {"row": pl.Int64, "text": pl.String, "cosine": pl.Float64}
NONE_NEAR = pl.DataFrame(schema=NEAR)


def nearest_texts(row_ND: NDArray[np.float32], texts: pa.Table, m: int) -> pl.DataFrame:
    """Returns the m texts nearest to each row: row, text and cosine in float64.

    All must be unit vectors, and texts be sorted by bytes: ties go to the first text.
    """
    if not len(texts) or not len(row_ND):
        return NONE_NEAR
    which_Nm, cosine_Nm = nearest_exact(row_ND, as_matrix(texts[VECTOR]), m)
    text = pl.Series(texts["text"])
    return pl.DataFrame(
        {
            "row": np.repeat(np.arange(len(which_Nm)), which_Nm.shape[1]),
            "text": text.gather(which_Nm.reshape(-1)),
            "cosine": cosine_Nm.reshape(-1),
        },
        schema=NEAR,
    )


def nearest_distinct(near: pl.DataFrame, m: int) -> pl.DataFrame:
    """Returns the m nearest distinct texts of each row, best first; ties go to the first text.

    A text with several vectors (a caption of several images) counts by the nearest one.
    """
    near = near.sort(["row", "cosine", "text"], descending=[False, True, False])
    near = near.unique(["row", "text"], keep="first", maintain_order=True)
    return near.filter(pl.int_range(pl.len()).over("row") < m)
