"""Captions of other images, or texts of a corpus, that are near an image."""

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
from clipmill.pipeline.stage import (
    DatasetStage,
    Gigabytes,
    NonEmpty,
    OneUp,
    Resources,
    ZeroUp,
    location,
)
from clipmill.stages.caption._corpus import (
    CELL,
    MET,
    VECTOR,
    Cells,
    ParquetTexts,
    Wanted,
    best,
    centres_of,
    in_cells,
    nearest_texts,
    need_one_width,
    nobody,
    once_in_order,
    texts_of,
)
from clipmill.stages.ops.outside import listing_digest, need_either
from clipmill.stages.ops.tables.combined import Concatenated, Zipped
from clipmill.stages.ops.tables.rows import DROPPED, dropped_before
from clipmill.stages.ops.texts.lists import text_list
from clipmill.stages.ops.vectors import centroids
from clipmill.stages.ops.vectors.matrices import as_matrix, from_matrix, unit_rows
from clipmill.stages.ops.vectors.nearest import nearest

# Shapes: N rows, D width of a vector.

CAPTION_COSINES = Column(
    "caption_cosines", pa.list_(pa.float32()), "cosine", "How near each text of `captions` is."
)
RETRIEVED = "retrieved"  # the label of a text
BLOCK = 16_384  # texts that a shard is compared with at a time
FOUND, COSINES = "found", "cosines"


@dataclass(frozen=True, kw_only=True)
class Retrieve(DatasetStage):
    """The `most` texts nearest to a row's image, nearest first; null where there is none.

    Texts are the captions of the pool's other rows, or those of `corpus`; the row's own caption,
    and one equal to it, is never among them, and no text is twice. caption_cosines says how near
    each is. Of equal cosines the text that sorts first is taken. captions_missing says how many of
    `most` were not found. Rows that an earlier select dropped get none and give none.

    Without `centroids` every row is compared with every text. With them, as of cluster.kmeans over
    the texts' embeddings, a row is compared with the texts of the `cells` centroids nearest to it,
    which costs `cells` of so many parts. It finds all of the same where `cells` are all; on the
    demo pool 53 % in one of 90 cells, 81 % in 4, 94 % in 12.

    Source: RealSyn (Gu et al. 2025): 3 texts of the nearest of 2 M cells, of 3 to 81 words, without
    link and emoji. Departs: none of its rules on grammar, entropy and perplexity.
    Error: cosines of unit vectors in float64, whatever the blocks and shards; stored as float32. Of
    a text with several vectors the first of each shard counts, and of those the nearest.
    Example: {after: [ingest.image_folder, embed.clip]}
    """

    most: OneUp = 3  # texts of a row
    query: NonEmpty = IMAGE_EMBEDDING.name  # the embeddings that texts are to be near to
    column: NonEmpty = TEXT_EMBEDDING.name  # the embeddings of the texts, by the same model
    # Parquet files of `text` and of `column`, whose schema names its model as clipmill.model;
    # without, the pool's captions
    corpus: NonEmpty | None = None
    centroids: NonEmpty | None = None  # of cells of texts: stage:NAME, or a Parquet of them
    cells: OneUp = 1  # nearest centroids of a row whose texts it is compared with
    min_words: ZeroUp = 3  # a text with fewer is not taken
    max_words: OneUp = 81  # nor one with more
    plain: bool = True  # nor one with a link or an emoji
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
        return (TEXT, query, *(it for it in own if it.name != query.name))

    @property
    def resources(self) -> Resources:
        return Resources(memory_gb=self.memory_gb)

    def look(self) -> None:
        centroids.look_for(self.centroids)
        if self.corpus:
            need_either(self.corpus, "corpus", "name a Parquet of texts, or a folder of them")

    def outside(self) -> str:
        """Names, sizes and times of the corpus' files and of the centroids'."""
        files = files_of(self.corpus) if self.corpus else ()
        return digest(
            [listing_digest(self.centroids), *([it.name, it.size, it.mtime_ns] for it in files)]
        )

    @property
    def wanted(self) -> Wanted:
        return Wanted(
            column=self.column,
            min_words=self.min_words,
            max_words=self.max_words,
            plain=self.plain,
        )

    def run(self, inputs: Inputs, ctx: Context) -> None:
        where = f"stage '{ctx.worker.stage}'"
        if self.corpus:
            files, model = ParquetTexts.of(self.corpus, self.column, where)
            texts: Shards = Zipped(partial(texts_of, self.wanted), (files,))
        else:
            model = inputs.model_of.get(self.column, "")
            texts = ctx.map_shards(partial(texts_of, self.wanted), inputs.rows)
        asks = inputs.model_of.get(self.query, "")
        if asks and model and asks != model:
            found = f"'{self.query}' is of model '{asks}', and '{self.column}' of '{model}'"
            raise StageError(found, f"{where}, key `column`", "embed both with one model")
        answer = partial(answered, self.most, ctx.worker.stage, model or None)
        ctx.say("comparing rows with texts")
        if self.centroids is None:
            held = texts if self.corpus else ctx.keep_local(texts)
            near = ctx.map_shards(partial(beside, self, held), inputs.rows)
        else:
            cells = Cells(
                inputs.centroids, self.centroids, listing_digest(self.centroids), where, self.cells
            )
            asked = ctx.map_shards(partial(questions, self, cells), inputs.rows)
            told = Zipped(partial(in_cells, cells), (texts,))
            met = ctx.shuffle(Concatenated((asked, told)), CELL)
            parts = ctx.map_shards(partial(beside_in_cells, self.most), met)
            near = ctx.map_shards(partial(together, self.most), ctx.shuffle(parts, UID.name))
        ctx.restore(ctx.map_shards(answer, near))


def query_of(stage: Retrieve, shard: pa.Table) -> tuple[NDArray[np.float32], pa.Array]:
    """(N, D) the vectors of the rows at length 1, and why some have none."""
    row_ND = unit_rows(as_matrix(shard[stage.query]))
    bad_N = ~np.isfinite(row_ND).all(axis=1) | (row_ND.shape[1] == 0)
    undefined = pc.make_struct(
        dropped_before(shard), shard[stage.query].is_null().combine_chunks(), pa.array(bad_N)
    )
    return row_ND, pc.case_when(undefined, *Retrieve.reasons[:3])


def beside(stage: Retrieve, texts: Shards, shard: pa.Table) -> pa.Table:
    """The texts nearest to each row of a shard, out of all."""
    row_ND, reason = query_of(stage, shard)
    some = np.flatnonzero(reason.is_null().to_numpy(zero_copy_only=False))
    near = nobody()
    for index in range(len(texts) if len(some) else 0):
        for block in texts.batches(index, BLOCK):
            more = nearest_texts(row_ND[some], block, stage.most + 1)
            near = best(pl.concat([near, more]), stage.most + 1)
    near = near.with_columns(row=pl.Series(some).gather(near["row"]))
    return with_found(shard, reason, near, stage.most)


def questions(stage: Retrieve, cells: Cells, shard: pa.Table) -> pa.Table:
    """A row for each cell that a row looks into; one without a cell where it has no vector."""
    row_ND, reason = query_of(stage, shard)
    centre_KD = centres_of(cells)
    some = np.flatnonzero(reason.is_null().to_numpy(zero_copy_only=False))
    need_one_width(row_ND[some], centre_KD, cells.where)
    cell_Nc, _ = nearest(row_ND[some], centre_KD, m=cells.most)
    none = np.flatnonzero(reason.is_valid().to_numpy(zero_copy_only=False))
    row_Q = np.append(np.repeat(some, cell_Nc.shape[1]), none)
    cell_Q = np.append(cell_Nc.reshape(-1), np.full(len(none), -1, np.int32))
    asked = {
        **{name: shard[name].take(row_Q) for name in (*IDENTITY, TEXT.name)},
        CELL: pa.array(cell_Q, pa.int32(), mask=cell_Q < 0),
        VECTOR: from_matrix(row_ND[row_Q]).cast(MET.field(VECTOR).type),
        REASON.name: reason.take(row_Q),
    }
    return pa.table(asked).select(MET.names).cast(MET)


def beside_in_cells(most: int, met: pa.Table) -> pa.Table:
    """The texts nearest to each row out of one cell; every cell is whole in its partition."""
    is_text = met[SHARD.name].is_null()
    asked, texts = met.filter(pc.invert(is_text)), met.filter(is_text)
    texts = texts.take(once_in_order(texts))
    asked_N = asked[CELL].fill_null(-1).to_numpy()
    order = np.argsort(asked_N, kind="stable")
    row_ND, near = as_matrix(asked[VECTOR]), []
    cell_K = texts[CELL].to_numpy()
    for rows in np.split(order, np.flatnonzero(np.diff(asked_N[order])) + 1):
        cell = asked_N[rows[0]] if len(rows) else -1
        start, stop = np.searchsorted(cell_K, [cell, cell + 1])
        if cell >= 0 and start < stop:
            found = nearest_texts(row_ND[rows], texts.slice(start, stop - start), most + 1)
            near.append(found.with_columns(row=pl.Series(rows).gather(found["row"])))
    return with_found(asked, asked[REASON.name], pl.concat([nobody(), *near]), most)


def together(most: int, rows: pa.Table) -> pa.Table:
    """Each row once, with the nearest of what its cells gave."""
    row = pl.DataFrame(rows.select([SHARD.name, POSITION.name]))
    number = row.select(pl.struct(pl.all()).rank("dense").cast(pl.Int64) - 1).to_series()
    found = pl.DataFrame(rows.select([FOUND, COSINES])).with_columns(row=number)
    found = found.explode(FOUND, COSINES).filter(pl.col(FOUND).is_not_null())
    first = np.unique(number.to_numpy(), return_index=True)[1]
    near = found.select("row", text=FOUND, cosine=COSINES)
    return with_found(rows.take(first), rows[REASON.name].take(first), near, most)


def with_found(rows: pa.Table, reason: pa.Array, near: pl.DataFrame, most: int) -> pa.Table:
    """Who the rows are, their own caption, and the `most` nearest texts that it is not."""
    own = pl.Series("own", rows[TEXT.name]).gather(near["row"])
    near = best(near.filter(own.is_null() | (near["text"] != own)), most)
    ends_N = np.append(0, np.cumsum(np.bincount(near["row"].to_numpy(), minlength=len(rows))))
    ends = pa.array(ends_N, pa.int32())
    texts = near["text"].to_arrow().cast(pa.string())
    lists = {
        FOUND: pa.ListArray.from_arrays(ends, texts),
        COSINES: pa.ListArray.from_arrays(ends, near["cosine"].to_arrow()),
    }
    kept = {name: rows[name] for name in (*IDENTITY, TEXT.name)}
    return pa.table({**kept, **lists, REASON.name: reason})


def answered(most: int, stage: str, model: str | None, rows: pa.Table) -> pa.Table:
    """What is stored of every row."""
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
