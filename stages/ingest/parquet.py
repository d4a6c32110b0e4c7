"""Reads a pool from Parquet files: links, images, captions, embeddings, and any other column."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.globs import open_pool
from clipmill.metadata.schema import (
    CAPTIONS,
    IMAGE,
    IMAGE_BYTES,
    IMAGE_EMBEDDING,
    ORIGINAL_HEIGHT,
    ORIGINAL_WIDTH,
    REASON,
    SHA256,
    TEXT,
    TEXT_EMBEDDING,
    UID,
    URL,
    Column,
)
from clipmill.pipeline.dataset import Context, Inputs, Task
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.stage import DatasetStage, NonEmpty, OneUp, later, location
from clipmill.stages.ingest._captions import (
    answers_of,
    caption_of,
    captions_of,
    without_mark,
)
from clipmill.stages.ingest._columns import (
    PARQUET_SUFFIXES,
    SourceColumn,
    check_extra,
    create_shards,
    fitted,
    head_of,
    refuse_misfits,
    refuse_uids,
    require,
    source_columns,
)
from clipmill.stages.ops.tables.dotted import flat, paths_of, type_at
from clipmill.stages.ops.tables.parquet_rows import (
    Source,
    parquet_counts,
    parquet_rows,
    scan_parquet,
)
from clipmill.stages.ops.tables.pools import (
    BATCH_ROWS,
    Values,
    any_of,
    failing_its_shard,
    first_reason,
    fit,
    list_files,
    one_array,
    sizes_of,
    uid_column,
    uid_values,
)

IMAGE_ROWS = 64  # rows in memory at a time if there are images, 1,024 of vectors
TEXT_ROWS = 4096  # a row group of ours: each batch costs a millisecond, whatever its rows
VECTORS = (IMAGE_EMBEDDING, TEXT_EMBEDDING)


@dataclass(frozen=True, kw_only=True)
class Parquet(DatasetStage):
    """Link, image, caption and embeddings of every row, as found; null, with a reason, if unfit.

    Image: bytes, or Hugging Face's struct of bytes and path. Caption: a text, or the first that is
    not empty in a list of texts (or of structs with `text`, as in an export); `all_captions` keeps
    the others. A column is a name or a dotted path into structs, `caption.en`. url: that of
    `url_col`, else the image's path. sha256 is that of the image's bytes, checked against
    `sha256_col` (`hash_mismatch`); without images it is that which a download must have.
    Embeddings are stored as float32 of `embedding_width`; of another width, or with NaN,
    `bad_embedding`. A null caption or embedding is no fault. uid: 16 bytes or 32 hex digits in
    `uid_col` (else `bad_uid`); without it the hash of caption and url, or, without a url, of
    caption and place in the pool, `0.parquet/ROW`.

    Source: Hugging Face's Image feature; img2dataset's column names; DataComp's uid.
    Error: a file is known by name, size and time of change. An image above 2 GB fails its shard.
    Example: {path: rows.parquet, image_col: image, caption_col: caption}
    """

    version = 1
    determinism = "exact"
    takes = ()
    reasons = ("no_image", "no_url", "hash_mismatch", "bad_embedding", "bad_uid", "bad_value")

    path: NonEmpty = location()  # a file, a folder or a glob, here or s3://…
    image_col: NonEmpty | None = None  # column of the images: bytes, or structs with `bytes`
    url_col: NonEmpty | None = None  # column of the link
    caption_col: NonEmpty | None = None  # column of the caption, or of a list of captions
    all_captions: bool = later(False)  # of a list also those after the first, as `captions`
    answers: bool = later(False)  # of a conversation, a list of turns, the answers are the captions
    strip_bom: bool = later(False)  # leaves out a byte-order mark before a caption
    # column of an id: 16 bytes or 32 hex digits; null: the hash of caption and link or place
    uid_col: NonEmpty | None = None
    width_col: NonEmpty | None = None  # column of the image's width, in pixels
    height_col: NonEmpty | None = None  # column of its height
    sha256_col: NonEmpty | None = None  # column of the image's SHA-256 in hex
    image_embedding_col: NonEmpty | None = None  # column of vectors of the images
    text_embedding_col: NonEmpty | None = None  # column of vectors of the captions
    embedding_width: OneUp | None = None  # numbers in a vector
    # more columns, each with its Arrow type: {license: string, tags: "list<item: string>"}
    extra: dict[NonEmpty, NonEmpty] = field(default_factory=dict)
    shard_rows: OneUp = 10_000  # rows of one shard, the unit of work and of resuming

    def __post_init__(self) -> None:
        if not (self.image_col or self.url_col or self.image_embedding_col):
            do = "name the column of links in `url_col`, or that of images in `image_col`"
            raise RecipeError("neither links nor images", "keys `url_col`, `image_col`", do)
        has_vectors = self.image_embedding_col or self.text_embedding_col
        if has_vectors and self.embedding_width is None:
            do = "write embedding_width: 512, or how many numbers each vector has"
            raise RecipeError("embeddings without a width", "key `embedding_width`", do)
        check_extra(self.extra, [column.name for column in self._own])

    @property
    def _own(self) -> tuple[Column, ...]:
        """Returns the columns that are written, without `extra`."""
        vector = pa.list_(pa.float32(), self.embedding_width or 0)
        named = (
            ((URL,), self.url_col or self.image_col),
            ((IMAGE, IMAGE_BYTES), self.image_col),
            ((TEXT,), self.caption_col),
            ((CAPTIONS,), self.caption_col and self.all_captions),
            ((ORIGINAL_WIDTH,), self.width_col),
            ((ORIGINAL_HEIGHT,), self.height_col),
            ((SHA256,), self.image_col or self.sha256_col),
            ((replace(IMAGE_EMBEDDING, dtype=vector),), self.image_embedding_col),
            ((replace(TEXT_EMBEDDING, dtype=vector),), self.text_embedding_col),
        )
        return tuple(column for columns, setting in named if setting for column in columns)

    @cached_property  # each batch reads them
    def fitted_columns(self) -> list[SourceColumn]:
        """Returns the columns of the files that are fitted to a type as they are."""
        vector = pa.list_(pa.float32(), self.embedding_width or 0)
        columns = {
            "url_col": URL,
            "width_col": ORIGINAL_WIDTH,
            "height_col": ORIGINAL_HEIGHT,
            "sha256_col": SHA256,
            "image_embedding_col": replace(IMAGE_EMBEDDING, dtype=vector),
            "text_embedding_col": replace(TEXT_EMBEDDING, dtype=vector),
        }
        return source_columns(self, columns, self.extra)

    @property
    def names(self) -> dict[str, str]:
        """Returns every column of the files that is read, by its setting."""
        keys = ("url_col", "image_col", "caption_col", "uid_col")
        own = {key: name for key in keys if (name := getattr(self, key)) is not None}
        return own | {source.key: source.name for source in self.fitted_columns}

    @cached_property
    def writes(self) -> tuple[Column, ...]:
        return *self._own, *(source.column for source in source_columns(self, {}, self.extra))

    def files(self) -> dict[str, int]:
        return sizes_of(list_files(self.path, PARQUET_SUFFIXES, "pool"))

    def counts(self) -> Iterator[tuple[int, int]]:
        return parquet_counts(self.path, PARQUET_SUFFIXES, self.shard_rows)

    def head(self, rows: int) -> pa.Table:
        files = list_files(self.path, PARQUET_SUFFIXES, "pool")
        return head_of(files, partial(scan, self), partial(read, self), rows)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        files = list_files(self.path, PARQUET_SUFFIXES, ctx.worker.stage)
        scanned = ctx.map(partial(scan, self), files)
        # Images dominate the cost of their shards.
        create_shards(ctx, partial(read, self), scanned, together=not self.image_col)


def scan(stage: Parquet, file: Mapping[str, Any], task: Task | None) -> dict[str, Any]:
    """Returns the file's sources: ranges of its rows, in groups that are read as one."""
    storage, _ = open_pool(stage.path)
    where = f"{storage}/{file['path']}"
    groups, schema = scan_parquet(storage, file, stage.shard_rows)
    if schema is None:
        return {"groups": groups}
    require(stage.names, paths_of(schema), where)
    if stage.image_col and not holds_images(dtype := type_at(schema, stage.image_col)):
        do = "name a column of bytes, or of structs with `bytes`; links belong in `url_col`"
        raise StageError(f"'{stage.image_col}' is {dtype}, not images", where, do)
    for key in ("image_embedding_col", "text_embedding_col"):
        dtype = type_at(schema, name) if (name := getattr(stage, key)) else None
        width = getattr(dtype, "list_size", stage.embedding_width)
        if width != stage.embedding_width:
            do = f"write embedding_width: {width}"
            raise StageError(f"'{name}' has vectors of {width} numbers", where, do)
    return {"groups": groups}


def read(
    stage: Parquet, group: Sequence[Source], task: Task | None, is_tried: bool = False
) -> Iterator[Iterator[pa.Table]]:
    """Yields each source's rows in the stage's columns; one empty table if there are none."""
    storage, _ = open_pool(stage.path)
    path = group[0]["path"]
    where = f"{storage}/{path}"
    names = list(dict.fromkeys(stage.names.values()))

    def stored(tables: Iterator[pa.Table], row: int) -> Iterator[pa.Table]:
        yield pa.schema([(c.name, c.dtype) for c in (UID, *stage.writes, REASON)]).empty_table()
        with failing_its_shard(where):
            for rows in tables:
                numbers = range(row, row + len(rows))
                place = partial(places, path, numbers)
                yield as_stored(stage, rows, place, where if is_tried else None)
                row = numbers.stop

    with failing_its_shard(where):
        has_vectors = stage.image_embedding_col or stage.text_embedding_col
        batch_rows = BATCH_ROWS if has_vectors else TEXT_ROWS
        batch_rows = IMAGE_ROWS if stage.image_col else batch_rows
        each = parquet_rows(storage, group, names, batch_rows, convert=partial(flat, names))
        for source, tables in zip(group, each, strict=True):
            yield stored(tables, source["start"])


def places(path: str, rows: range, values: Mapping[str, pa.Array]) -> pa.Array:
    """Returns the place of each row in the pool."""
    return pa.array([f"{path}/{row}" for row in rows], pa.string())


def as_stored(
    stage: Parquet,
    rows: pa.Table,
    place: Callable[[Mapping[str, pa.Array]], pa.Array],
    tried: str | None,
    more: Mapping[str, pa.Array] = MappingProxyType({}),
    pictures: pa.Array | None = None,
) -> pa.Table:
    """Returns rows of a file in the columns that the stage writes.

    `place` gives of them what stands for a missing link in the uid; `more` are reasons that are
    known; `tried` is the `where` of `fitted`; `pictures` stand for `image_col`.
    """
    values, misfits = fitted(stage.fitted_columns, rows, tried)
    if pictures is not None:
        rows = rows.set_column(rows.column_names.index(stage.image_col), stage.image_col, pictures)
    masks = {**more, **dict.fromkeys(Parquet.reasons, pa.array(np.zeros(len(rows), bool)))}
    if stage.image_col:
        image, name = images_of(rows[stage.image_col])
        digests = [body and hashlib.sha256(body).hexdigest() for body in image.to_pylist()]
        digest, stated = pa.array(digests, pa.string()), values.get(SHA256.name)
        values |= {IMAGE.name: image, SHA256.name: digest}
        values[IMAGE_BYTES.name] = pc.binary_length(image).cast(IMAGE_BYTES.dtype)
        values.setdefault(URL.name, name)
        masks["no_image"] = image.is_null()
        if stated is not None:
            differs = pc.not_equal(pc.utf8_lower(stated), digest)
            masks["hash_mismatch"] = pc.fill_null(differs, False)
    if stage.url_col:
        masks["no_url"] = pc.fill_null(pc.equal(values[URL.name], ""), True)
    found = rows[stage.caption_col] if stage.caption_col else None
    found = answers_of(found) if found is not None and stage.answers else found
    if found is not None and stage.all_captions:
        texts, misfits[TEXT.name] = captions_of(found, all_captions=True)
        values |= texts
    elif found is not None:
        caption, misfits[TEXT.name] = caption_of(found)
        values[TEXT.name] = without_mark(caption) if stage.strip_bom else caption
    uid = uid_values(rows[stage.uid_col]) if stage.uid_col else None
    if uid is not None:
        masks["bad_uid"] = uid.is_null()
    if tried:
        refuse_unfit(stage, rows, masks, misfits, tried)
    vectors = [misfits.pop(c.name) for c in VECTORS if c.name in misfits]
    masks["bad_embedding"] = any_of(vectors, len(rows))
    masks["bad_value"] = any_of(list(misfits.values()), len(rows))
    link = values[URL.name] if stage.url_col else pa.nulls(len(rows), pa.string())
    text = values.get(TEXT.name, pa.nulls(len(rows), pa.string()))
    stored = {column.name: values[column.name] for column in stage.writes}
    if link.null_count:
        link = pc.coalesce(link, place(values))
    known = uid_column(uid, link, text)
    return pa.table({UID.name: known, **stored, REASON.name: first_reason(masks)})


def refuse_unfit(
    stage: Parquet,
    rows: pa.Table,
    masks: Mapping[str, pa.Array],
    misfits: Mapping[str, pa.Array],
    where: str,
) -> None:
    """Raises StageError if most captions, uids, digests or images are unfit."""
    for key, column, misfit, what in (
        ("caption_col", TEXT, misfits.get(TEXT.name), "no text"),
        ("sha256_col", SHA256, masks["hash_mismatch"], "not the SHA-256 of the image"),
    ):
        name = getattr(stage, key)
        if name is not None and misfit is not None:
            refuse_misfits(SourceColumn(key, name, column), rows[name], misfit, where, what)
    if stage.uid_col:
        refuse_uids(stage.uid_col, rows[stage.uid_col], masks["bad_uid"], where)
    paths = rows[stage.image_col] if stage.image_col else None
    if paths is not None and pa.types.is_struct(paths.type):
        without = SourceColumn("image_col", str(stage.image_col), IMAGE)
        refuse_misfits(without, paths, masks["no_image"], where, "without bytes: paths alone")


def images_of(values: Values) -> tuple[pa.Array, pa.Array]:
    """Returns each image's encoded bytes, and its path if the value is a struct that has one."""
    array = one_array(values)
    path = pa.nulls(len(array), pa.string())
    if pa.types.is_struct(array.type):
        if array.type.get_field_index("path") >= 0:
            path, _ = fit(pc.struct_field(array, "path"), pa.string())
        array = pc.struct_field(array, "bytes")
    image = array.cast(IMAGE.dtype)
    return pc.if_else(pc.equal(pc.binary_length(image), 0), None, image), path


def holds_images(dtype: pa.DataType) -> bool:
    """Returns whether a column of this type can hold images: bytes, or a struct with `bytes`."""
    if pa.types.is_struct(dtype) and dtype.get_field_index("bytes") >= 0:
        dtype = dtype.field("bytes").type
    return str(dtype).removeprefix("large_").removeprefix("fixed_size_").startswith("binary")
