"""Exports the training set as shuffled, self-contained Parquet shards."""

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
from clipmill.stages.export._pictures import PictureExport, about_set, write_parquet
from clipmill.stages.export._texts import captions_of


@dataclass(frozen=True, kw_only=True)
class Parquet(PictureExport):
    """Shards of uid, image bytes, caption, texts, weights and chosen columns, in hash order.

    Takes the kept rows (all, without a select stage before) that have an image and a caption; or
    those of another export, filtered by a select if `rows` names one. Adds dataset.json (files and
    counts), a data card and Croissant metadata. Rows and bytes depend on the pool, the seed and the
    settings, never on the workers.

    Error: rows are shuffled within a group of source shards, about one file; loaders mix groups.
    Example: {after: [ingest.image_folder]}
    """

    license: NonEmpty | None = later(None)  # of the set: a URL, or an SPDX identifier
    url: NonEmpty | None = later(None)  # of the set's web page
    uid_hex: bool = later(True)  # add the uid as text, for readers without fixed-size bytes

    version = 4
    formats = ("parquet",)
    always = (UID, UID_HEX, IMAGE, CAPTION, TEXTS, REPEATS, LOSS_WEIGHT, SAMPLE_INDEX, REASON)
    if_present = (LOSS_WEIGHT,)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_page(self.url)

    @property
    def note(self) -> str:
        """The keys that Croissant requires and the recipe does not set."""
        lacking = [f"`{key}`" for key in ("license", "url") if getattr(self, key) is None]
        return f"set {' and '.join(lacking)} to share it: Croissant asks" if lacking else ""

    def written(self, inputs: Inputs) -> dict[str, Any]:
        write = partial(write_parquet, partial(exported, self))
        about = about_set(self.license, self.url, inputs)
        return {"layout": "parquet", "write": write, "about": about}


def exported(stage: Parquet, table: pa.Table) -> pa.Table:
    """Converts the rows to the exported columns."""
    out = {UID.name: table[UID.name]}
    if stage.uid_hex:
        out[UID_HEX.name] = as_hex(table[UID.name])
    texts = stage.texts(table)
    out |= {IMAGE.name: table[IMAGE.name], CAPTION.name: captions_of(table, texts)}
    out[TEXTS.name] = texts
    for column in (REPEATS, LOSS_WEIGHT):
        is_present = column.name in table.column_names
        values = table[column.name] if is_present else pa.nulls(len(table), column.dtype)
        out[column.name] = values.fill_null(1)
    out[SAMPLE_INDEX.name] = table[SAMPLE_INDEX.name]
    if stage.dropped:
        out |= stage.dropped.columns_of(table)
    return pa.table({**out, **{name: table[name] for name in stage.columns}})
