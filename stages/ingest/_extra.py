"""Reads the setting `extra`: columns that pass through, of types as Arrow prints them."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.metadata.limits import PARSE_ERRORS
from clipmill.metadata.schema import REASON, UID, Column
from clipmill.pipeline.errors import RecipeError
from clipmill.stages.ingest._columns import SourceColumn

PASSED = "Passed through from the pool."
LISTS = {"list": pa.list_, "large_list": pa.large_list, "list_view": pa.list_view}


def source_columns(
    stage: Any, own: Mapping[str, Column], extra: Mapping[str, str]
) -> list[SourceColumn]:
    """Returns the columns that settings name: the stage's own by key, then those of `extra`."""
    named = {key: getattr(stage, key) for key in own}
    return [
        *(SourceColumn(key, name, own[key]) for key, name in named.items() if name is not None),
        *(
            SourceColumn(f"extra.{name}", name, Column(name, type_of(text), "as found", PASSED))
            for name, text in extra.items()
        ),
    ]


def check_extra(extra: Mapping[str, str], taken: Sequence[str]) -> None:
    """Raises RecipeError for a column read already, an unknown type, and one no file can hold."""
    for name, text in extra.items():
        if name in {UID.name, REASON.name, *taken}:
            raise RecipeError(f"'{name}' twice", "key `extra`", "leave it out: it is read")
        where = f"key `extra.{name}`"
        try:
            dtype = type_of(text)
        except (OverflowError, *PARSE_ERRORS) as error:
            do = (
                "write an Arrow type as Arrow prints it: string, int64, double, timestamp[us],"
                " list<item: string>, fixed_size_list<item: float>[512], ..."
            )
            why = "" if str(error) == f"'{text}' is none" else f": {error}"
            raise RecipeError(f"'{text:.80}' is no Arrow type{why}", where, do) from error
        stored = comes_back(dtype)
        if stored != dtype:
            do = "leave it out" if stored is None else f"write {stored}"
            raise RecipeError(f"Parquet stores no {dtype}", where, do)


def type_of(text: str) -> pa.DataType:
    """Returns the type that Arrow prints so, or that has this alias; ValueError if there is none.

    `list<string>` is short for `list<item: string>`, `fixed_size_list<float>[512]` likewise.
    """
    text = text.strip()
    with suppress(ValueError):
        return pa.type_for_alias(text)
    if match := re.fullmatch(r"(timestamp)\[(\w+), tz=([^\]]+)\]", text):
        return pa.timestamp(match[2], match[3])
    if match := re.fullmatch(r"(?:fixed_size_)?binary\[(\d+)\]", text):
        return pa.binary(int(match[1]))
    if match := re.fullmatch(r"(decimal(?:32|64|128|256))\((\d+), *(-?\d+)\)", text):
        return getattr(pa, match[1])(int(match[2]), int(match[3]))
    if match := re.fullmatch(r"(?s)(\w+)<(.*)>(?:\[(\d+)\])?", text):
        return _nested(match[1], _parts(match[2]), match[3], text)
    raise ValueError(f"'{text}' is none")


def comes_back(dtype: pa.DataType) -> pa.DataType | None:
    """Returns the type that Parquet gives back for a column of this one; None if it stores none."""
    sink = pa.BufferOutputStream()
    try:
        pq.ParquetWriter(sink, pa.schema([("column", dtype)])).close()  # a table imports pandas
    except pa.ArrowException:
        return None
    return pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema_arrow.field(0).type


def _nested(kind: str, parts: list[str], width: str | None, text: str) -> pa.DataType:
    """Returns a type that holds others; `width` is the number in brackets behind it."""
    if len(parts) == 1 and kind == "fixed_size_list" and width:
        return pa.list_(_field(parts[0], "item"), int(width))
    if len(parts) == 1 and kind in LISTS and width is None:
        return LISTS[kind](_field(parts[0], "item"))
    if width is None and kind == "struct" and parts:
        return pa.struct([_field(part, None) for part in parts])
    if width is None and kind == "map" and len(parts) in (2, 3):
        key, value = (re.sub(r" \('\w+'\)$", "", part) for part in parts[:2])
        return pa.map_(type_of(key), type_of(value), keys_sorted=parts[2:] == ["keys_sorted"])
    named = dict(part.split("=", 1) for part in parts if "=" in part)
    if width is None and kind == "dictionary" and named.keys() >= {"values", "indices"}:
        ordered = named.get("ordered", "0") != "0"
        return pa.dictionary(type_of(named["indices"]), type_of(named["values"]), ordered)
    raise ValueError(f"'{text}' is none")


def _field(text: str, name: str | None) -> pa.Field:
    """Parses `name: type`, with or without `not null`; `name` is for text that gives none."""
    head, colon, tail = text.partition(": ")
    if not colon or (name is not None and "<" in head):  # the colon belongs to an inner type
        if name is None:
            raise ValueError(f"a field without `name: type` in '{text}'")
        head, tail = name, text
    kind = tail.removesuffix(" not null")
    return pa.field(head.strip(), type_of(kind), nullable=kind == tail)


def _parts(text: str) -> list[str]:
    """Splits the text at commas outside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "<[(") - (letter in ">])")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]
