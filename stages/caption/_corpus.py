"""Texts to retrieve, with their vectors, and those of them that are nearest to each row."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipmill.metadata.globs import open_pool
from clipmill.metadata.keys import redacted
from clipmill.metadata.schema import POSITION, REASON, SHARD, TEXT, UID
from clipmill.pipeline.errors import StageError
from clipmill.stages.ops.tables.combined import Combined
from clipmill.stages.ops.tables.parquet_rows import sizes_of_groups
from clipmill.stages.ops.tables.rows import dropped_before
from clipmill.stages.ops.vectors import centroids
from clipmill.stages.ops.vectors.centroids import MARK
from clipmill.stages.ops.vectors.matrices import as_matrix, from_matrix, unit_rows
from clipmill.stages.ops.vectors.nearest import nearest_centre, nearest_sure

# Shapes: N rows, K centroids, D width of a vector; m texts of each, fewer where there are fewer.

VECTOR = "vector"  # a text's, at length 1
WORD = r"\S+"
LINK = r"(?i)https?://|\bwww\.|\b[a-z0-9-]+\.(?:com|net|org|info|biz|io|uk|de|fr|jp|ru|cn)\b"
EMOJI = r"\p{Emoji_Presentation}|\x{FE0F}"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which texts may be retrieved."""

    column: str  # of the vectors
    min_words: int
    max_words: int
    plain: bool


def texts_of(wanted: Wanted, shard: pa.Table) -> pa.Table:
    """The texts of a shard that may be retrieved, in order of their bytes, each once."""
    import polars as pl

    vector_ND = unit_rows(as_matrix(shard[wanted.column]))
    has_vector = pa.array(np.isfinite(vector_ND).all(axis=1) & (vector_ND.shape[1] > 0))
    usable = pc.and_(has_vector, pc.invert(dropped_before(shard)))
    text = pl.col("text")
    words = text.str.count_matches(WORD)
    rule = text.is_not_null() & words.is_between(wanted.min_words, wanted.max_words)
    if wanted.plain:
        rule &= ~text.str.contains(LINK) & ~text.str.contains(EMOJI)
    frame = pl.DataFrame({"text": shard[TEXT.name], "usable": usable}).with_row_index("row")
    frame = frame.filter(rule & pl.col("usable")).unique("text", keep="first", maintain_order=True)
    frame = frame.sort("text")
    row_K = frame["row"].to_numpy()
    return pa.table(
        {
            "text": frame["text"].to_arrow().cast(pa.string()),
            VECTOR: from_matrix(vector_ND[row_K]),
        }
    )


@dataclass(frozen=True)
class ParquetTexts(Combined):
    """Row groups of Parquet files that have a column `text` and one of vectors, as shards."""

    path: str
    column: str
    groups: tuple[tuple[str, int], ...]  # of which file, and its number there

    @staticmethod
    def of(path: str, column: str, where: str) -> "tuple[ParquetTexts, str]":
        """The texts, and the model that every file says; StageError where one does not fit."""
        at = f"{where}, key `corpus`: {redacted(path)}"
        groups: list[tuple[str, int]] = []
        models: set[str] = set()
        for name, parquet in opened(path, at):
            schema = parquet.schema_arrow
            missing = [it for it in (TEXT.name, column) if it not in schema.names]
            if missing:
                found = f"no column '{missing[0]}' in {name}"
                has = ", ".join(schema.names)
                raise StageError(found, at, f"write `text` and `{column}` a row; it has {has}")
            marks = schema.metadata or {}
            if MODEL not in marks:
                do = f"write {MODEL.decode()} into the metadata of its schema"
                raise StageError(f"{name} does not say which model made '{column}'", at, do)
            models.add(marks[MODEL].decode())
            groups += [(name, number) for number in range(len(sizes_of_groups(parquet)))]
        if len(models) > 1:
            found = f"texts of {len(models)} models: {', '.join(sorted(models))}"
            raise StageError(found, at, "embed all texts with one model")
        return ParquetTexts(path, column, tuple(groups)), models.pop()

    def __len__(self) -> int:
        return len(self.groups)

    def table(self, index: int) -> pa.Table:
        name, group = self.groups[index]
        storage, _ = open_pool(self.path)
        with storage.open(name) as source, pq.ParquetFile(source) as parquet:
            return parquet.read_row_group(group, columns=[TEXT.name, self.column])


MODEL = f"{MARK}model".encode()


def opened(path: str, at: str) -> Iterator[tuple[str, pq.ParquetFile]]:
    """The Parquet files at a path; StageError where there is none, or one cannot be read."""
    from clipmill.stages.ops.tables.pools import list_files

    storage, _ = open_pool(path)
    for file in list_files(path, (".parquet",), at):
        try:
            with storage.open(file["path"]) as source, pq.ParquetFile(source) as parquet:
                yield file["path"], parquet
        except (pa.ArrowException, OSError) as error:
            found = f"no Parquet that can be read: {error}"
            raise StageError(found, at, "write it again, or leave it out") from None


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


NEAR = {"row": pl.Int64, "text": pl.String, "cosine": pl.Float64}


def nobody() -> pl.DataFrame:
    return pl.DataFrame(schema=NEAR)


def nearest_texts(row_ND: NDArray[np.float32], texts: pa.Table, m: int) -> pl.DataFrame:
    """The m texts nearest to each row, both at length 1: row, text and cosine in float64.

    The texts are in the order of their bytes, so of equal cosines the first text is taken.
    """
    if not len(texts) or not len(row_ND):
        return nobody()
    which_Nm, cosine_Nm = nearest_sure(row_ND, as_matrix(texts[VECTOR]), m)
    text = pl.Series(texts["text"])
    return pl.DataFrame(
        {
            "row": np.repeat(np.arange(len(which_Nm)), which_Nm.shape[1]),
            "text": text.gather(which_Nm.reshape(-1)),
            "cosine": cosine_Nm.reshape(-1),
        },
        schema=NEAR,
    )


def best(found: pl.DataFrame, m: int) -> pl.DataFrame:
    """Of each row the m nearest, each text once, best first; of equal ones the first text.

    A text that has several vectors, as one beside several images, counts by the nearest of them.
    """
    found = found.sort(["row", "cosine", "text"], descending=[False, True, False])
    found = found.unique(["row", "text"], keep="first", maintain_order=True)
    return found.filter(pl.int_range(pl.len()).over("row") < m)
