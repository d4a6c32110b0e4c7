"""The training set itself: shuffled, self-contained Parquet shards."""

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
    TEXTS,
    UID,
    UID_HEX,
)
from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.stage import NonEmpty, later
from clipmill.stages.export._columns import as_hex, check_page
from clipmill.stages.export._leaving import Dropped
from clipmill.stages.export._pictures import PictureExport, about_set, write_parquet
from clipmill.stages.export._texts import Captions, captions_of, texts_of


@dataclass(frozen=True, kw_only=True)
class Parquet(PictureExport):
    """Shards of uid, image bytes, caption, texts, weights and chosen columns, in hashed order.

    Takes the rows that `keep` keeps (all, where no select stage stands before) and that have an
    image and a caption; or those of another export, under a select where `rows` names one. Beside
    them: dataset.json (files and counts), a data card, Croissant metadata. Rows and bytes depend on
    the pool, the seed and the settings, never on the workers.

    Error: rows mix within a group of source shards, about one file's worth; a loader mixes groups.
    Example: {after: [ingest.image_folder]}
    """

    license: NonEmpty | None = later(None)  # of the set: a URL, or a name of SPDX's
    url: NonEmpty | None = later(None)  # of the page that presents the set
    uid_hex: bool = later(True)  # a column of the uid as text: many readers know no bytes

    version = 4
    formats = ("parquet",)
    always = (UID, UID_HEX, IMAGE, CAPTION, TEXTS, REPEATS, LOSS_WEIGHT, SAMPLE_INDEX, REASON)
    where_there = (LOSS_WEIGHT,)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_page(self.url)

    @property
    def note(self) -> str:
        """The keys that Croissant requires and the recipe does not set."""
        lacking = [f"`{key}`" for key in ("license", "url") if getattr(self, key) is None]
        return f"set {' and '.join(lacking)} to share it: Croissant asks" if lacking else ""

    def written(self, inputs: Inputs) -> dict[str, Any]:
        leave = partial(
            exported,
            captions=self.captions,
            uid_hex=self.uid_hex,
            dropped=self.dropped,
            columns=self.columns,
        )
        about = about_set(self.license, self.url, inputs)
        return {"layout": "parquet", "write": partial(write_parquet, leave), "about": about}


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
