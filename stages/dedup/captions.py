"""Counts the images that share a text, as a captioning model repeats itself."""

import hashlib
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import IDENTITY, SHA256, TEXT_IMAGES, TEXTS, UID
from clipmill.metadata.uid import from_hex
from clipmill.pipeline.dataset import Context, Inputs
from clipmill.pipeline.stage import DatasetStage
from clipmill.stages.ops.tables.rows import with_reason

ID = pa.binary(16)


@dataclass(frozen=True, kw_only=True)
class SharedCaptions(DatasetStage):
    """Number of images in the pool that have the same text, from 1; of each text of a row.

    Texts are compared in NFKC, lower case and with single spaces, images by sha256, or by uid where
    no earlier stage wrote sha256. Null for a blank text, and for a row without a list.

    Source: none needed; texts with the same 128 bits of BLAKE2 count as equal.
    Error: all rows of a text are in one partition, 60 bytes each: a text that ten million images
    share takes 0.6 GB. Without sha256 copies of an image count as several.
    Example: {after: [ingest.datacomp, caption.rewrite, score.caption]}
    """

    exact: bool = False  # compare texts as they are, byte for byte

    version = 1
    determinism = "exact"
    reads = (TEXTS,)
    optional_reads = (SHA256,)
    writes = (TEXT_IMAGES,)
    reasons = ("no_text",)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        ctx.say("comparing captions")
        texts = ctx.shuffle(ctx.map_shards(partial(filed, self.exact), inputs.rows), "key")
        rows = ctx.shuffle(ctx.map_shards(counted, texts), UID.name)  # a row's texts meet again
        ctx.drop(texts)
        ctx.restore(ctx.map_shards(gathered, rows))


def filed(exact: bool, shard: pa.Table) -> pa.Table:
    """Returns one row per text: its place in the pool, `key` (a digest) and image.

    A row without texts gives one row, too.
    """
    from clipmill.stages.dedup._plain import caption_keys  # polars: not while a recipe is planned

    lists = shard[TEXTS.name].combine_chunks()
    size_N = pc.list_value_length(lists).fill_null(0).to_numpy()
    rows_N = np.maximum(size_N, 1)
    row_T = np.repeat(np.arange(len(shard)), rows_N)
    has_text_T = (size_N > 0)[row_T]
    first_T = np.repeat(np.cumsum(rows_N) - rows_N, rows_N)
    place_T = np.where(has_text_T, np.arange(len(row_T)) - first_T, -1)
    index = pa.array(np.cumsum(has_text_T) - 1, mask=~has_text_T)
    text = pc.struct_field(pc.list_flatten(lists), "text").take(index)
    digest = digests(text if exact else caption_keys(pa.chunked_array([text])))
    out = shard.select(IDENTITY).take(pa.array(row_T))
    uid = out[UID.name].combine_chunks()
    image = uid
    if SHA256.name in shard.column_names:
        # The first 128 bits of each digest; null if it is no hex, or shorter.
        image = from_hex(pc.utf8_slice_codeunits(shard[SHA256.name], 0, 32))
        image = pc.coalesce(image.take(pa.array(row_T)), uid)
    return (
        out.append_column("place", pa.array(place_T, pa.int32()))
        .append_column("is_text", digest.is_valid())
        .append_column("key", pc.coalesce(digest, uid))  # blank texts would meet in one partition
        .append_column("image", image)
    )


def digests(texts: pa.Array) -> pa.Array:
    """Returns 128 bits of each text; null if it is null or empty."""
    coded = pc.if_else(pc.equal(texts, ""), None, texts).dictionary_encode()
    # A loop: hashlib takes one at a time; each different text once.
    digest = [hashlib.blake2b(t.as_buffer(), digest_size=16).digest() for t in coded.dictionary]
    return pa.array(digest, ID).take(coded.indices)


def counted(partition: pa.Table) -> pa.Table:
    """Counts the images of each text; the order of rows and partitions does not matter."""
    import polars as pl

    texts = pl.DataFrame(partition.select(["key", "image", "is_text"]))
    images = texts.select(pl.when("is_text").then(pl.col("image").n_unique().over("key")))
    out = partition.select([*IDENTITY, "place"])
    return out.append_column("images", images.to_series().to_arrow().cast(pa.int64()))


def gathered(partition: pa.Table) -> pa.Table:
    """Returns the list of every row, or a reason."""
    order = [(name, "ascending") for name in ("shard", "position", "place")]
    texts = partition.combine_chunks().sort_by(order)
    shard_T, position_T, place_T = (
        texts[name].to_numpy() for name in ("shard", "position", "place")
    )
    is_first_T = np.ones(len(texts), bool)
    is_first_T[1:] = (np.diff(shard_T) != 0) | (np.diff(position_T) != 0)
    has_text_T = place_T >= 0
    start_N = np.flatnonzero(is_first_T)
    images = texts["images"].filter(pa.array(has_text_T)).combine_chunks()
    offset_N = np.append(0, np.cumsum(has_text_T))[np.append(start_N, len(texts))]
    none_N = np.diff(offset_N) == 0
    lists = pa.ListArray.from_arrays(
        offset_N.astype(np.int32), images, type=TEXT_IMAGES.dtype, mask=pa.array(none_N)
    )
    reason = pc.if_else(pa.array(none_N), SharedCaptions.reasons[0], None)
    rows = texts.select(IDENTITY).take(pa.array(start_N))
    return with_reason(rows, {TEXT_IMAGES.name: lists}, reason)
