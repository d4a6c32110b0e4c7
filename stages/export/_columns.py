"""Checks the columns of an export, and converts their values to text."""

import json
import math
from collections.abc import Iterable
from typing import Any

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

# img2dataset's fields, and our own that a loader needs.
IF_PRESENT = URL, WIDTH, HEIGHT, ORIGINAL_WIDTH, ORIGINAL_HEIGHT, SHA256, LOSS_WEIGHT
# Storage of `Image` of `datasets`.
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def check_columns(columns: tuple[str, ...], always: Iterable[Column | str]) -> None:
    """Checks that no chosen column repeats, or has the name of a fixed one; raises ValueError."""
    names = {fixed if isinstance(fixed, str) else fixed.name for fixed in always}
    taken = sorted(names & set(columns))
    if taken:
        raise ValueError(f"`columns` names '{taken[0]}', which this export has anyway")
    twice = [name for name in columns if columns.count(name) > 1]
    if twice:
        raise ValueError(f"`columns` names '{twice[0]}' twice")


def check_page(url: str | None) -> None:
    """Checks that the URL of a set's page is HTTP or HTTPS; raises ValueError."""
    if url is not None and not url.startswith(("https://", "http://")):
        raise ValueError(f"url is {url!r}; it begins with https:// or http://")


def as_hex(values: pa.ChunkedArray) -> pa.Array:
    """Returns fixed-size binary values as hex digits; null stays null."""
    import polars as pl  # not while a recipe is planned

    column = pl.DataFrame(pa.table({"values": values})).to_series()
    return column.bin.encode("hex").to_arrow().cast(pa.string())


def with_hex_ids(table: pa.Table) -> pa.Table:
    """Returns the rows with every id (a fixed-size binary column) as hex digits."""
    for i, field in enumerate(table.schema):
        if pa.types.is_fixed_size_binary(field.type):
            table = table.set_column(i, field.name, as_hex(table[i]))
    return table


def as_pictures(encoded: pa.Array) -> pa.Array:
    """Returns {bytes, path: null} of each encoded picture; null without one."""
    paths = pa.nulls(len(encoded), pa.string())
    return pa.StructArray.from_arrays(
        [encoded, paths], fields=list(PICTURE), mask=encoded.is_null()
    )


def as_json(value: Any) -> str:
    """Converts a value that JSON has no type for: bytes to hex digits, others by `str`."""
    return value.hex() if isinstance(value, bytes) else str(value)


def json_text(value: Any) -> str:
    """Returns a value as one line of JSON."""
    return json.dumps(finite(value), ensure_ascii=False, default=as_json)


def as_text(values: pa.ChunkedArray) -> pa.Array:
    """Converts values to text: bytes to hex digits, lists and structs to JSON, others by `str`."""
    texts = (
        value
        if value is None
        else json_text(value)
        if isinstance(value, list | dict)
        else as_json(value)
        for value in values.to_pylist()
    )
    return pa.array(texts, pa.string())


def finite(value: Any) -> Any:
    """Replaces NaN and infinity, which JSON does not have, by null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value
