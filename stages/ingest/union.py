"""Joins several pools into one: the only place where two roots meet."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from clipmill.metadata.schema import (
    HEIGHT,
    IMAGE,
    IMAGE_BYTES,
    ORIGINAL_HEIGHT,
    ORIGINAL_WIDTH,
    REASON,
    REASON_TYPE,
    SHA256,
    SOURCE,
    TEXT,
    UID,
    URL,
    WIDTH,
    Column,
)
from clipmill.pipeline.dataset import Context, Inputs, Shards, Task
from clipmill.pipeline.stage import DatasetStage

SIZES = (ORIGINAL_WIDTH, ORIGINAL_HEIGHT)
IMAGES = (IMAGE, IMAGE_BYTES, WIDTH, HEIGHT, SHA256)


@dataclass(frozen=True, kw_only=True)
class Union(DatasetStage):
    """Rows of all parents in the order of `from`, shard by shard, as one new root.

    A column that a parent lacks is null for its rows. `images: true` takes the stored images along,
    with their size and digest. A uid that two parents share stays in both places, for (shard,
    position) is a row's identity; dedup.exact finds them.

    Error: none. A parent's reason for a row that it could not read stays with the parent.
    Example: {after: [ingest.datacomp, ingest.image_folder]}
    """

    version = 1
    determinism = "exact"
    joins_roots = True
    reads = (URL, TEXT)

    images: bool = False  # take the stored images along, with size and digest

    @property
    def optional_reads(self) -> tuple[Column | str, ...]:
        return (*SIZES, *IMAGES) if self.images else SIZES

    @property
    def writes(self) -> tuple[Column, ...]:
        return (URL, TEXT, *SIZES, SOURCE, *(IMAGES if self.images else ()))

    def run(self, inputs: Inputs, ctx: Context) -> None:
        rows: Any = inputs.rows  # of all parents, one after another; each shard tells its root
        sources = [
            {"shard": i, "source": rows.source(i), "digest": rows.digest(i)}
            for i in range(len(rows))
        ]
        ctx.create_shards(partial(read, self, rows), sources)


def read(stage: Union, shards: Shards, source: Mapping[str, Any], task: Task) -> Iterator[pa.Table]:
    """Yields one parent's shard in the stage's columns."""
    for batch in shards.batches(source["shard"]):
        yield joined(stage, batch, source["source"])


def joined(stage: Union, batch: pa.Table, source: str) -> pa.Table:
    """Returns a parent's rows, with nulls in columns that it lacks."""
    columns = {name: batch[name] for name in batch.column_names}
    columns[SOURCE.name] = pa.array([source] * len(batch), SOURCE.dtype)
    values = {
        column.name: columns.get(column.name, pa.nulls(len(batch), column.dtype))
        for column in stage.writes
    }
    reason = pa.nulls(len(batch), REASON_TYPE)
    return pa.table({UID.name: batch[UID.name], **values, REASON.name: reason})
