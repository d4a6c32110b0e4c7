"""Exports the training set as a Hugging Face dataset: a folder that `load_dataset` opens."""

import json
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from clipmill.metadata.schema import CAPTION, IMAGE, REASON, REPEATS, SAMPLE_INDEX, TEXTS, UID
from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.stage import NonEmpty
from clipmill.stages.export._columns import (
    IF_PRESENT,
    as_pictures,
    as_text,
    check_page,
    with_hex_ids,
)
from clipmill.stages.export._pictures import PictureExport, about_set, write_parquet
from clipmill.stages.export._texts import captions_of, lists_in


@dataclass(frozen=True, kw_only=True)
class HuggingFace(PictureExport):
    """Files data/train-00000-of-00012.parquet …, with a README.md that declares the features.

    A row has `image` (an `Image`: the stored bytes), `caption`, `uid` as 32 hex digits,
    `sample_index`, the pool's url, sizes, sha256, repeats and loss_weight if present, and the
    chosen columns; after caption stages also `texts`: a list of {text, source, model, prompt_id,
    label}, whose first text is `caption`. Takes the rows of `export.parquet`, in the same order.
    README.md is a dataset card: features, splits and licence in its head; below, the stages that
    made the set, and counts.

    Types that `datasets` lacks (a map, an interval) become JSON texts.

    Source: the Parquet layout of the Hugging Face Hub, as `datasets` writes it.
    Error: `num_bytes` in the card is the size of the files, not of the decoded table.
    Example: {after: [ingest.webdataset]}
    """

    license: NonEmpty | None = None  # of the set: a URL, or an SPDX identifier
    url: NonEmpty | None = None  # of the set's web page

    version = 3
    formats = ("huggingface",)
    always = (UID, IMAGE, CAPTION, TEXTS, SAMPLE_INDEX, REASON)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_page(self.url)

    def written(self, inputs: Inputs) -> dict[str, Any]:
        about = about_set(self.license, self.url, inputs)
        write = partial(write_parquet, partial(exported, self), marked=with_features)
        return {"layout": "huggingface", "write": write, "about": about, "stem": stem}


def stem(files: int, number: int) -> str:
    """Returns the Hub's name of a file: its number, and the number of files."""
    return f"data/train-{number:05d}-of-{files:05d}"


def exported(stage: HuggingFace, table: pa.Table) -> pa.Table:
    """Converts the rows: pictures to structs, ids to text."""
    known = [column.name for column in (*IF_PRESENT, REPEATS) if column.name in table.column_names]
    texts = stage.texts(table)
    out = {
        IMAGE.name: as_pictures(table[IMAGE.name].combine_chunks()),
        CAPTION.name: captions_of(table, texts),
    }
    if lists_in(table.schema, stage.captions):
        out[TEXTS.name] = texts
    out |= {name: table[name] for name in (UID.name, SAMPLE_INDEX.name)}
    if stage.dropped:
        out |= stage.dropped.columns_of(table)
    rows = with_hex_ids(pa.table(out | {name: table[name] for name in (*known, *stage.columns)}))
    for i, field in enumerate(rows.schema):
        if not has_feature(field.type):
            rows = rows.set_column(i, field.name, as_text(rows[i]))
    return rows


Features = dict[str, Any]
RENAMED = {
    "halffloat": "float16",
    "float": "float32",
    "double": "float64",
    "date32[day]": "date32",
    "date64[ms]": "date64",
}  # Arrow's type names to those of `datasets`, if they differ
VALUES = (
    *(pa.types.is_null, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating),
    *(pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary),
    *(pa.types.is_date, pa.types.is_time, pa.types.is_timestamp, pa.types.is_duration),
    *(pa.types.is_decimal128, pa.types.is_decimal256),
)


def with_features(schema: pa.Schema) -> pa.Schema:
    """Adds the features to the schema's metadata, under the key `huggingface`."""
    info = {"info": {"features": features_of(schema)}}
    return schema.with_metadata({"huggingface": json.dumps(info)})


def features_of(schema: pa.Schema) -> Features:
    """Returns the feature of every column; the pictures' is an `Image`."""
    return {
        field.name: {"_type": "Image"} if field.name == IMAGE.name else _feature(field.type)
        for field in schema
    }


def has_feature(dtype: pa.DataType) -> bool:
    """Returns whether `datasets` has a type for these values; not for a map or an interval."""
    if pa.types.is_struct(dtype):
        return all(has_feature(field.type) for field in dtype)
    if pa.types.is_list(dtype) or pa.types.is_fixed_size_list(dtype):
        return has_feature(dtype.value_type)
    return any(is_value(dtype) for is_value in VALUES)


def _feature(dtype: pa.DataType) -> Any:
    if pa.types.is_struct(dtype):
        return {field.name: _feature(field.type) for field in dtype}
    if pa.types.is_list(dtype):
        inner = _feature(dtype.value_type)
        # A Sequence of structs is read as a struct of lists; versions before 4 have no List.
        is_struct = pa.types.is_struct(dtype.value_type)
        return [inner] if is_struct else {"feature": inner, "_type": "Sequence"}
    if pa.types.is_fixed_size_list(dtype):
        inner, length = _feature(dtype.value_type), dtype.list_size
        return {"feature": inner, "_type": "Sequence", "length": length}
    return {"dtype": RENAMED.get(str(dtype), str(dtype)), "_type": "Value"}
