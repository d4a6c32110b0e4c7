"""The training set itself: shuffled, self-contained Parquet shards."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from clipmill.metadata.schema import (
    CAPTION,
    IMAGE,
    LOSS_WEIGHT,
    REASON,
    REPEATS,
    SAMPLE_INDEX,
    TEXT,
    TEXTS,
    UID,
    UID_HEX,
    Column,
)
from clipmill.metadata.shard import ShardWriter
from clipmill.pipeline.dataset import Context, Inputs, Task
from clipmill.pipeline.stage import DatasetStage, NonEmpty, OneUp, later
from clipmill.stages.export._columns import as_hex, check_columns, check_page
from clipmill.stages.export._exported import rows_of
from clipmill.stages.export._groups import export_files
from clipmill.stages.export._leaving import REASONS, Dropped, Takes, takes_of
from clipmill.stages.export._texts import (
    Captions,
    captions_of,
    check_captions,
    check_types,
    texts_of,
    which_list,
)

FIXED = (UID, UID_HEX, IMAGE, CAPTION, TEXTS, REPEATS, LOSS_WEIGHT, SAMPLE_INDEX, REASON)


@dataclass(frozen=True, kw_only=True)
class Parquet(DatasetStage):
    """Shards of uid, image bytes, caption, texts, weights and chosen columns, in hashed order.

    Takes the rows that `keep` keeps (all, where no select stage stands before) and that have an
    image and a caption; or those of another export, under a select where `rows` names one. Beside
    them: dataset.json (files and counts), a data card, Croissant metadata. Rows and bytes depend on
    the pool, the seed and the settings, never on the workers.

    Error: rows mix within a group of source shards, about one file's worth; a loader mixes groups.
    Example: {after: [ingest.image_folder]}
    """

    rows_per_shard: OneUp = 10_000  # at most; a group of whole source shards seldom fills it
    columns: tuple[NonEmpty, ...] = ()  # stored besides, as `name` or `stage.name`
    license: NonEmpty | None = later(None)  # of the set: a URL, or a name of SPDX's
    url: NonEmpty | None = later(None)  # of the page that presents the set
    uid_hex: bool = later(True)  # a column of the uid as text: many readers know no bytes
    dropped: Dropped | None = later(None)  # rows that a stage lost, in the place of kept ones
    # texts of a row: true takes `texts`, or the caption and one caption stage's; [a.captions, …]
    # the caption and these lists; false none, so that pictures leave alone
    captions: Captions = later(True)

    version = 4
    determinism = "exact"
    formats = ("parquet",)
    takes = (("rows", "data"),)
    gives = ("data",)
    reasons = REASONS

    def __post_init__(self) -> None:
        check_columns(self.columns, FIXED)
        check_captions(self.captions)
        check_page(self.url)

    @property
    def taking(self) -> Takes:
        """Which rows leave."""
        return takes_of(self.captions, self.dropped)

    @property
    def reads(self) -> tuple[Column | str, ...]:
        text = (TEXT,) if self.captions else ()
        return IMAGE, *text, *self.columns, *self.taking.reads

    @property
    def optional_reads(self) -> tuple[Column | tuple[Column, ...], ...]:
        return LOSS_WEIGHT, *self.taking.optional_reads

    def check(self, types: Mapping[str, pa.DataType]) -> None:
        """Whether each list that `captions` names is one of captions."""
        check_types(self.captions, types)

    def hint(self, column: str, writers: tuple[str, ...] = ()) -> str:
        """Of two caption stages side by side, how to name both."""
        return which_list(column, writers)

    def texts(self, rows: pa.Table) -> pa.Array:
        """TEXT_LIST: every text of each row, as they leave."""
        return texts_of(rows, self.captions)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        takes = self.taking
        rows = rows_of(inputs, (*self.columns, *takes.reads), ctx)
        leave = partial(
            exported,
            captions=self.captions,
            uid_hex=self.uid_hex,
            dropped=self.dropped,
            columns=self.columns,
        )
        write = partial(write_file, leave)
        said = {"license": self.license, "url": self.url, "made_by": inputs.told}
        about = {name: value for name, value in said.items() if value}
        export_files(rows, takes, ctx, "parquet", self.rows_per_shard, write, about=about)


def write_file(
    leave: Callable[[pa.Table], pa.Table],
    stem: str,
    tables: Iterator[pa.Table],
    empty: pa.Table,
    task: Task,
) -> tuple[dict[str, Any], pa.Schema]:
    """One shard, and its schema."""
    schema = leave(empty).schema
    path = task.worker.scratch / f"{stem}.parquet"
    writer = ShardWriter(path, schema, task.page_checksums)
    for table in tables:
        writer.add(leave(table))
    sha256, size_bytes = writer.close()
    task.put_file(path.name, path, sha256)
    return {"file": path.name, "bytes": size_bytes, "sha256": sha256}, schema


def exported(
    table: pa.Table,
    captions: Captions,
    uid_hex: bool,
    dropped: Dropped | None,
    columns: tuple[str, ...],
) -> pa.Table:
    """The rows as they leave."""
    out = {UID.name: table[UID.name]}
    if uid_hex:
        out[UID_HEX.name] = as_hex(table[UID.name])
    texts = texts_of(table, captions)
    out |= {IMAGE.name: table[IMAGE.name], CAPTION.name: captions_of(table, texts, captions)}
    out[TEXTS.name] = texts
    for column in (REPEATS, LOSS_WEIGHT):
        given = column.name in table.column_names
        values = table[column.name] if given else pa.nulls(len(table), column.dtype)
        out[column.name] = values.fill_null(1)
    out[SAMPLE_INDEX.name] = table[SAMPLE_INDEX.name]
    if dropped:
        out |= dropped.told(table)
    return pa.table({**out, **{name: table[name] for name in columns}})
