"""What `datasets` reads of a Parquet file's schema: its features, as its own writer stores them."""

import json
from typing import Any

import pyarrow as pa

from clipmill.metadata.schema import IMAGE

Features = dict[str, Any]
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # an `Image`, stored
RENAMED = {
    "halffloat": "float16",
    "float": "float32",
    "double": "float64",
    "date32[day]": "date32",
    "date64[ms]": "date64",
}  # Arrow's words to theirs, where they are others
VALUES = (
    *(pa.types.is_null, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating),
    *(pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary),
    *(pa.types.is_date, pa.types.is_time, pa.types.is_timestamp, pa.types.is_duration),
    *(pa.types.is_decimal128, pa.types.is_decimal256),
)


def with_features(schema: pa.Schema) -> pa.Schema:
    """The schema with its features beside it, under the key `huggingface`."""
    told = {"info": {"features": features_of(schema)}}
    return schema.with_metadata({"huggingface": json.dumps(told)})


def features_of(schema: pa.Schema) -> Features:
    """The feature of every column: an `Image` for the pictures."""
    return {
        field.name: {"_type": "Image"} if field.name == IMAGE.name else _feature(field.type)
        for field in schema
    }


def has_feature(dtype: pa.DataType) -> bool:
    """Whether `datasets` has a type for these values; a map or an interval has none."""
    if pa.types.is_struct(dtype):
        return all(has_feature(field.type) for field in dtype)
    if pa.types.is_list(dtype) or pa.types.is_fixed_size_list(dtype):
        return has_feature(dtype.value_type)
    return any(is_one(dtype) for is_one in VALUES)


def _feature(dtype: pa.DataType) -> Any:
    if pa.types.is_struct(dtype):
        return {field.name: _feature(field.type) for field in dtype}
    if pa.types.is_list(dtype):
        inner = _feature(dtype.value_type)
        # A Sequence of structs is read as a struct of lists; versions before 4 know no List.
        return [inner] if pa.types.is_struct(dtype.value_type) else _sequence(inner)
    if pa.types.is_fixed_size_list(dtype):
        return {**_sequence(_feature(dtype.value_type)), "length": dtype.list_size}
    return {"dtype": RENAMED.get(str(dtype), str(dtype)), "_type": "Value"}


def _sequence(feature: Any) -> Features:
    return {"feature": feature, "_type": "Sequence"}
