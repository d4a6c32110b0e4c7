"""The training set itself: shuffled, self-contained Parquet shards."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from metadata.schema import (
    IMAGE,
    IMAGE_BYTES,
    KEEP,
    LOSS_WEIGHT,
    REPEATS,
    TEXT,
    TEXTS,
    UID,
    UID_HEX,
    Column,
)
from metadata.shard import ShardWriter
from pipeline.dataset import Context, Inputs, Task
from pipeline.stage import DatasetStage, later
from stages.export._exported import rows_of
from stages.export._groups import REASONS, export_files

FIXED = (UID, IMAGE, TEXTS, REPEATS, LOSS_WEIGHT, UID_HEX)


@dataclass(frozen=True, kw_only=True)
class Parquet(DatasetStage):
    """Shards of uid, image bytes, texts, repeats, loss_weight and chosen columns, in hashed order.

    Takes the rows that `keep` keeps (all, where no select stage stands before) and that have an
    image and a caption; or those of another export, under a select where `rows` names one. Beside
    them: dataset.json (files and counts), a data card, Croissant metadata. Rows and bytes depend on
    the pool, the seed and the settings, never on the workers.

    Error: rows mix within a group of source shards, about one file's worth; a loader mixes groups.
    """

    rows_per_shard: int = 10_000  # at most; a group of whole source shards seldom fills it
    columns: tuple[str, ...] = ()  # stored besides, as `name` or `stage.name`
    license: str | None = later(None)  # of the set: a URL, or a name of SPDX's
    url: str | None = later(None)  # of the page that presents the set
    # a column of the uid as text, for readers that know no bytes, as Croissant's
    uid_hex: bool = later(False)

    version = 1
    determinism = "exact"
    takes = (("rows", "data"),)
    gives = ("data",)
    optional_reads = (KEEP, IMAGE_BYTES, REPEATS, LOSS_WEIGHT)
    reasons = REASONS

    def __post_init__(self) -> None:
        taken = {column.name for column in FIXED} & set(self.columns)
        if taken or len(set(self.columns)) < len(self.columns):
            raise ValueError(f"columns names {sorted(taken) or 'one'} twice: {self.columns}")
        if self.rows_per_shard < 1:
            raise ValueError(f"rows_per_shard is {self.rows_per_shard}, and at least 1")
        if self.url is not None and not self.url.startswith(("https://", "http://")):
            raise ValueError(f"url is {self.url!r}; it begins with https:// or http://")

    @property
    def reads(self) -> tuple[Column | str, ...]:
        return IMAGE, TEXT, *self.columns

    def run(self, inputs: Inputs, ctx: Context) -> None:
        hex_too = (UID_HEX.name,) * self.uid_hex
        write = partial(write_file, (*hex_too, *self.columns))
        said = {"license": self.license, "url": self.url}
        about = {name: text for name, text in said.items() if text}
        rows = rows_of(inputs, self.columns, ctx)
        export_files(rows, ctx, "parquet", self.rows_per_shard, write, about=about)


def write_file(
    columns: tuple[str, ...], stem: str, tables: Iterator[pa.Table], empty: pa.Table, task: Task
) -> tuple[dict[str, Any], pa.Schema]:
    """One shard, and its schema."""
    schema = exported(empty, columns).schema
    path = task.worker.scratch / f"{stem}.parquet"
    writer = ShardWriter(path, schema, task.page_checksums)
    for table in tables:
        writer.add(exported(table, columns))
    sha256, size_bytes = writer.close()
    task.put_file(path.name, path)
    return {"file": path.name, "bytes": size_bytes, "sha256": sha256}, schema


def exported(table: pa.Table, columns: tuple[str, ...]) -> pa.Table:
    """The rows as they leave."""
    out = {UID.name: table[UID.name], IMAGE.name: table[IMAGE.name]}
    given = TEXTS.name in table.column_names  # of another export
    out[TEXTS.name] = table[TEXTS.name] if given else as_texts(table[TEXT.name])
    for column in (REPEATS, LOSS_WEIGHT):
        given = column.name in table.column_names
        values = table[column.name] if given else pa.nulls(len(table), column.dtype)
        out[column.name] = values.fill_null(1)
    for name in columns:
        out[name] = as_hex(table[UID.name]) if name == UID_HEX.name else table[name]
    return pa.table(out)


def as_hex(uid: pa.ChunkedArray) -> pa.Array:
    """32 digits each."""
    return pa.array([value.hex() for value in uid.to_pylist()], pa.string())  # of a batch of images


def as_texts(text: pa.ChunkedArray) -> pa.Array:
    """One caption a row, as the pool has it."""
    text = text.combine_chunks()
    given = {"text": text, "source": pa.array(np.full(len(text), "original"), pa.string())}
    fields = list(TEXTS.dtype.value_type)
    values = [given.get(f.name, pa.nulls(len(text), f.type)) for f in fields]
    offsets = pa.array(np.arange(len(text) + 1, dtype=np.int32))
    return pa.ListArray.from_arrays(
        offsets, pa.StructArray.from_arrays(values, fields=fields), type=TEXTS.dtype
    )
