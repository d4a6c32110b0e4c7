"""The columns of an export: their names, and values as text."""

import binascii
import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from clipmill.metadata.schema import (
    HEIGHT,
    LOSS_WEIGHT,
    ORIGINAL_HEIGHT,
    ORIGINAL_WIDTH,
    SHA256,
    URL,
    WIDTH,
    Column,
)

WHERE_THERE = (
    URL,
    WIDTH,
    HEIGHT,
    ORIGINAL_WIDTH,
    ORIGINAL_HEIGHT,
    SHA256,
    LOSS_WEIGHT,
)  # img2dataset's fields, and what a loader needs of ours
PICTURE = pa.struct(
    [("bytes", pa.binary()), ("path", pa.string())]
)  # `Image` of `datasets`, stored


def check_columns(columns: tuple[str, ...], always: Iterable[Column]) -> None:
    """ValueError where a chosen column is named twice, or has the name of one that is there."""
    taken = sorted({column.name for column in always} & set(columns))
    if taken:
        raise ValueError(f"`columns` names '{taken[0]}', which this export has anyway")
    twice = [name for name in columns if columns.count(name) > 1]
    if twice:
        raise ValueError(f"`columns` names '{twice[0]}' twice")


def check_page(url: str | None) -> None:
    """ValueError where the page of a set is none."""
    if url is not None and not url.startswith(("https://", "http://")):
        raise ValueError(f"url is {url!r}; it begins with https:// or http://")


def as_hex(values: pa.ChunkedArray) -> pa.Array:
    """Two digits a byte, of values of a fixed number of bytes; null where there is none."""
    values = values.combine_chunks()
    width, start, rows = values.type.byte_width, values.offset, len(values)
    digits = binascii.hexlify(values.buffers()[1][start * width : (start + rows) * width])
    there = values.is_valid().buffers()[1] if values.null_count else None
    offsets = np.arange(rows + 1, dtype=np.int32) * (2 * width)
    buffers = [there, pa.py_buffer(offsets), pa.py_buffer(digits)]
    return pa.Array.from_buffers(pa.string(), rows, buffers)


def with_hex_ids(table: pa.Table) -> pa.Table:
    """The rows with every id as hex digits: uids are bytes of a fixed number."""
    for i, field in enumerate(table.schema):
        if pa.types.is_fixed_size_binary(field.type):
            table = table.set_column(i, field.name, as_hex(table[i]))
    return table


def as_json(value: Any) -> str:
    """What JSON has no type for: bytes as hex digits, times and decimals as text."""
    return value.hex() if isinstance(value, bytes) else str(value)


def json_text(value: Any) -> str:
    """JSON of a value, in one line."""
    return json.dumps(_finite(value), ensure_ascii=False, default=as_json)


def as_text(values: pa.ChunkedArray) -> pa.Array:
    """Bytes as hex digits, lists and structs as JSON, all else as Python prints it."""
    texts = (
        value
        if value is None
        else json_text(value)
        if isinstance(value, list | dict)
        else as_json(value)
        for value in values.to_pylist()
    )
    return pa.array(texts, pa.string())


def _finite(value: Any) -> Any:
    """NaN and infinity, which JSON does not have, as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value
