"""Retrieves captions of other images, or texts of a corpus, that are near an image."""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.fingerprint import digest
from clipmill.metadata.globs import files_of
from clipmill.metadata.schema import (
    CAPTIONS,
    CAPTIONS_MISSING,
    IDENTITY,
    IMAGE_EMBEDDING,
    KEEP,
    POSITION,
    REASON,
    REASON_TYPE,
    SHARD,
    TEXT,
    TEXT_EMBEDDING,
    UID,
    Column,
)
from clipmill.pipeline.dataset import Context, Inputs, Shards
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.stage import DatasetStage, Gigabytes, NonEmpty, OneUp, ZeroUp, location
from clipmill.stages.caption._corpus import (
    CELL,
    CELL_SCHEMA,
    NONE_NEAR,
    VECTOR,
    Cells,
    ParquetTexts,
    centres_of,
    check_width,
    distinct_sorted,
    in_cells,
    nearest_distinct,
    nearest_texts,
)
from clipmill.stages.ops.outside import listing_digest, need_either
from clipmill.stages.ops.tables.combined import Concatenated, Zipped
from clipmill.stages.ops.tables.rows import DROPPED, dropped_before
from clipmill.stages.ops.texts.lists import text_list
from clipmill.stages.ops.vectors import centroids
from clipmill.stages.ops.vectors.matrices import as_matrix, from_matrix, unit_rows
from clipmill.stages.ops.vectors.nearest import nearest

# Shapes: N rows, K texts or centroids, Q queries (a row and a cell), c cells of a row, D width.

CAPTION_COSINES = Column(
    "caption_cosines", pa.list_(pa.float32()), "cosine", "How near each text of `captions` is."
)
RETRIEVED = "retrieved"  # the label of a text
BLOCK = 16_384  # texts compared with a shard at a time
FOUND, COSINES = "found", "cosines"


@dataclass(frozen=True, kw_only=True)
class Retrieve(DatasetStage):
    """The `most` distinct texts nearest to a row's image, nearest first; null if there is none.

    Texts are the captions of the pool's other rows, or those of `corpus`, without texts equal to
    the row's own caption. caption_cosines has the cosine of each; ties go to the text that sorts
    first. captions_missing is `most` minus the number found. Rows that an earlier select dropped
    neither get texts nor give any.

    Without `centroids` every row is compared with every text. With centroids (cluster.kmeans over
    the texts' embeddings) a row is compared with the texts of its `cells` nearest centroids only,
    at a cost in proportion. With all cells it finds the same texts, if each has one vector; on the
    demo pool 53 % in one of 90 cells, 81 % in 4, 94 % in 12.

    Source: RealSyn (Gu et al. 2025): 3 texts of the nearest of 2 M cells, of 3 to 81 words, without
    link and emoji. Departs: none of its rules on grammar, entropy and perplexity.
    Error: cosines of unit vectors in float64, independent of blocks and shards; stored as float32.
    If a text has several vectors, the first of a shard (or cell) counts, and the nearest of these.
    Example: {after: [ingest.image_folder, embed.clip]}
    """

    most: OneUp = 3  # cap on texts of a row
    query: NonEmpty = IMAGE_EMBEDDING.name  # the rows' embeddings, near which texts are sought
    column: NonEmpty = TEXT_EMBEDDING.name  # the texts' embeddings, by the same model
    # Parquet files with `text` and `column`, whose schema has the model as clipmill.model; null:
    # the pool's captions
    corpus: NonEmpty | None = None
    centroids: NonEmpty | None = None  # of cells of texts: stage:NAME, or a Parquet file
    cells: OneUp = 1  # number of nearest centroids whose texts a row is compared with
    min_words: ZeroUp = 3  # least words of a text
    max_words: OneUp = 81  # cap on words of a text
    plain: bool = True  # leave out texts with a link or an emoji
    memory_gb: Gigabytes = location(4)  # memory of one worker, in GB

    version = 1
    determinism = "exact"
    takes = ("rows", "centroids")
    optional_reads = (KEEP,)
    writes = (CAPTIONS, CAPTION_COSINES, CAPTIONS_MISSING)
    reasons = (DROPPED, "no_embedding", "zero_or_nan_embedding", "nothing_near")

    def __post_init__(self) -> None:
        if self.cells > 1 and self.centroids is None:
            do = "name the centroids of the cells, or leave `cells` out: all texts are compared"
            raise RecipeError("`cells` without `centroids`", "key `cells`", do)
        if self.min_words > self.max_words:
            found = f"min_words: {self.min_words} and max_words: {self.max_words}"
            raise RecipeError(found, "key `min_words`", "write a range that holds some length")

    @property
    def reads(self) -> tuple[Column, ...]:
        query = replace(IMAGE_EMBEDDING, name=self.query)
        own = () if self.corpus else (replace(TEXT_EMBEDDING, name=self.column),)
        return (TEXT, query, *(column for column in own if column.name != query.name))

    def look(self) -> None:
        centroids.look_for(self.centroids)
        if self.corpus:
            need_either(self.corpus, "corpus", "name a Parquet of texts, or a folder of them")

    def outside(self) -> str:
        """Returns a digest of names, sizes and times of the corpus' files and of the centroids'."""
        files = files_of(self.corpus) if self.corpus else ()
        listed = ([file.name, file.size, file.mtime_ns] for file in files)
        return digest([listing_digest(self.centroids), *listed])

    def run(self, inputs: Inputs, ctx: Context) -> None:
        where = f"stage '{ctx.worker.stage}'"
        if self.corpus:
            files, model = ParquetTexts.of(self.corpus, self.column, where)
            texts: Shards = Zipped(partial(texts_of, self), (files,))
        else:
            model = inputs.model_of.get(self.column, "")
            texts = ctx.map_shards(partial(texts_of, self), inputs.rows)
        query_model = inputs.model_of.get(self.query, "")
        if query_model and model and query_model != model:
            found = f"'{self.query}' is of model '{query_model}', and '{self.column}' of '{model}'"
            raise StageError(found, f"{where}, key `column`", "embed both with one model")
        answer = partial(answered, self.most, ctx.worker.stage, model or None)
        ctx.say("comparing rows with texts")
        if self.centroids is None:
            local = texts if self.corpus else ctx.keep_local(texts)
            near = ctx.map_shards(partial(among_all, self, local), inputs.rows)
        else:
            cells = Cells(inputs.centroids, self.centroids, listing_digest(self.centroids), where)
            queries = ctx.map_shards(partial(queries_of, self, cells), inputs.rows)
            in_cell = Zipped(partial(in_cells, cells), (texts,))
            by_cell = ctx.shuffle(Concatenated((queries, in_cell)), CELL)
            parts = ctx.map_shards(partial(within_cells, self.most), by_cell)
            near = ctx.map_shards(partial(merged, self.most), ctx.shuffle(parts, UID.name))
        ctx.restore(ctx.map_shards(answer, near))


WORD = r"\S+"
LINK = r"(?i)https?://|\bwww\.|\b[a-z0-9-]+\.(?:com|net|org|info|biz|io|uk|de|fr|jp|ru|cn)\b"
EMOJI = r"\p{Emoji_Presentation}|\x{FE0F}"


def texts_of(stage: Retrieve, shard: pa.Table) -> pa.Table:
    """Returns the texts of a shard that may be retrieved, distinct, sorted by bytes."""
    vector_ND = unit_rows(as_matrix(shard[stage.column]))
    has_vector = pa.array(np.isfinite(vector_ND).all(axis=1) & (vector_ND.shape[1] > 0))
    usable = pc.and_(has_vector, pc.invert(dropped_before(shard)))
    text = pl.col("text")
    words = text.str.count_matches(WORD)
    rule = text.is_not_null() & words.is_between(stage.min_words, stage.max_words)
    if stage.plain:
        rule &= ~text.str.contains(LINK) & ~text.str.contains(EMOJI)
    frame = pl.DataFrame({"text": shard[TEXT.name], "usable": usable}).with_row_index("row")
    frame = frame.filter(rule & pl.col("usable")).unique("text", keep="first", maintain_order=True)
    frame = frame.sort("text")
    row_K = frame["row"].to_numpy()
    return pa.table(
        {"text": frame["text"].to_arrow().cast(pa.string()), VECTOR: from_matrix(vector_ND[row_K])}
    )


def vectors_of(stage: Retrieve, shard: pa.Table) -> tuple[NDArray[np.float32], pa.Array]:
    """Returns (N, D) the rows' vectors at length 1, and reasons of rows without one."""
    row_ND = unit_rows(as_matrix(shard[stage.query]))
    bad_N = ~np.isfinite(row_ND).all(axis=1) | (row_ND.shape[1] == 0)
    undefined = pc.make_struct(
        dropped_before(shard), shard[stage.query].is_null().combine_chunks(), pa.array(bad_N)
    )
    return row_ND, pc.case_when(undefined, *Retrieve.reasons[:3])


def among_all(stage: Retrieve, texts: Shards, shard: pa.Table) -> pa.Table:
    """Returns the nearest of all texts for each row of a shard."""
    row_ND, reason = vectors_of(stage, shard)
    some = np.flatnonzero(reason.is_null().to_numpy(zero_copy_only=False))
    near = NONE_NEAR
    for index in range(len(texts) if len(some) else 0):
        for block in texts.batches(index, BLOCK):
            # One more than `most`, here and in cells: one may be the row's own caption.
            more = nearest_texts(row_ND[some], block, stage.most + 1)
            near = nearest_distinct(pl.concat([near, more]), stage.most + 1)
    near = near.with_columns(row=pl.Series(some).gather(near["row"]))
    return with_found(shard, reason, near, stage.most)


def queries_of(stage: Retrieve, cells: Cells, shard: pa.Table) -> pa.Table:
    """Returns a row's query for each cell it searches; one with a null cell if it has no vector."""
    row_ND, reason = vectors_of(stage, shard)
    centre_KD = centres_of(cells)
    some = np.flatnonzero(reason.is_null().to_numpy(zero_copy_only=False))
    check_width(row_ND[some], centre_KD, cells.where)
    cell_Nc, _ = nearest(row_ND[some], centre_KD, m=stage.cells)
    none = np.flatnonzero(reason.is_valid().to_numpy(zero_copy_only=False))
    row_Q = np.append(np.repeat(some, cell_Nc.shape[1]), none)
    cell_Q = np.append(cell_Nc.reshape(-1), np.full(len(none), -1, np.int32))
    queries = {
        **{name: shard[name].take(row_Q) for name in (*IDENTITY, TEXT.name)},
        CELL: pa.array(cell_Q, pa.int32(), mask=cell_Q < 0),
        VECTOR: from_matrix(row_ND[row_Q]).cast(CELL_SCHEMA.field(VECTOR).type),
        REASON.name: reason.take(row_Q),
    }
    return pa.table(queries).select(CELL_SCHEMA.names).cast(CELL_SCHEMA)


def within_cells(most: int, by_cell: pa.Table) -> pa.Table:
    """Returns each query with the nearest texts of its cell; a partition has whole cells."""
    is_text = by_cell[SHARD.name].is_null()
    queries, texts = by_cell.filter(pc.invert(is_text)), by_cell.filter(is_text)
    texts = texts.take(distinct_sorted(texts))
    cell_Q = queries[CELL].fill_null(-1).to_numpy()
    order = np.argsort(cell_Q, kind="stable")
    row_ND, near = as_matrix(queries[VECTOR]), []
    cell_K = texts[CELL].to_numpy()
    for rows in np.split(order, np.flatnonzero(np.diff(cell_Q[order])) + 1):  # of one cell each
        cell = cell_Q[rows[0]] if len(rows) else -1
        start, stop = np.searchsorted(cell_K, [cell, cell + 1])
        if cell >= 0 and start < stop:
            some = nearest_texts(row_ND[rows], texts.slice(start, stop - start), most + 1)
            near.append(some.with_columns(row=pl.Series(rows).gather(some["row"])))
    return with_found(queries, queries[REASON.name], pl.concat([NONE_NEAR, *near]), most)


def merged(most: int, rows: pa.Table) -> pa.Table:
    """Merges the texts from a row's cells; returns each row once, with its nearest."""
    place = pl.DataFrame(rows.select([SHARD.name, POSITION.name]))  # equal in all parts of a row
    number = place.select(pl.struct(pl.all()).rank("dense").cast(pl.Int64) - 1).to_series()
    texts = pl.DataFrame(rows.select([FOUND, COSINES])).with_columns(row=number)
    texts = texts.explode(FOUND, COSINES).filter(pl.col(FOUND).is_not_null())
    first = np.unique(number.to_numpy(), return_index=True)[1]
    near = texts.select("row", text=FOUND, cosine=COSINES)
    return with_found(rows.take(first), rows[REASON.name].take(first), near, most)


def with_found(rows: pa.Table, reason: pa.Array, near: pl.DataFrame, most: int) -> pa.Table:
    """Returns the rows with the `most` nearest texts that differ from their own caption."""
    own = pl.Series("own", rows[TEXT.name]).gather(near["row"])
    near = nearest_distinct(near.filter(own.is_null() | (near["text"] != own)), most)
    ends_N = np.append(0, np.cumsum(np.bincount(near["row"].to_numpy(), minlength=len(rows))))
    ends = pa.array(ends_N, pa.int32())
    texts = near["text"].to_arrow().cast(pa.string())
    lists = {
        FOUND: pa.ListArray.from_arrays(ends, texts),
        COSINES: pa.ListArray.from_arrays(ends, near["cosine"].to_arrow()),
    }
    columns = {name: rows[name] for name in (*IDENTITY, TEXT.name)}
    return pa.table({**columns, **lists, REASON.name: reason})


def answered(most: int, stage: str, model: str | None, rows: pa.Table) -> pa.Table:
    """Converts the rows to the stage's columns."""
    number_N = pc.list_value_length(rows[FOUND]).to_numpy()
    none = pa.array(number_N == 0)
    texts = pl.DataFrame(
        {"text": pl.Series(pc.list_flatten(rows[FOUND]), dtype=pl.String)}
    ).with_columns(
        source=pl.lit(stage),
        model=pl.lit(model, pl.String),
        prompt_id=pl.lit(None, pl.String),
        label=pl.lit(RETRIEVED),
    )
    reason = pc.coalesce(rows[REASON.name], pc.if_else(none, Retrieve.reasons[3], None))
    cosines = rows[COSINES].cast(CAPTION_COSINES.dtype)
    return pa.table(
        {
            **{name: rows[name] for name in IDENTITY},
            CAPTIONS.name: text_list(texts, number_N),
            CAPTION_COSINES.name: pc.if_else(none, None, cosines),
            CAPTIONS_MISSING.name: pa.array((most - number_N).astype(np.int32), mask=number_N == 0),
            REASON.name: reason.cast(REASON_TYPE),
        }
    )
