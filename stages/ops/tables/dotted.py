"""Reads fields of rows by dotted paths.

A dotted path, `caption.en`, is a field of a struct or a key of an object in JSON; a column or key
that is itself called so goes first.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


def flat(paths: Sequence[str], table: pa.Table) -> pa.Table:
    """Returns the columns at the paths that are there; a path into another type gives none.

    Where no path is there, all columns: a table without any has no rows.
    """
    columns = {}
    for path in paths:
        name, *below = [path] if path in table.column_names else path.split(".")
        if type_at(table.schema, path) is not None:
            columns[path] = pc.struct_field(table[name], below) if below else table[name]
    return pa.table(columns) if columns else table


def roots_of(paths: Iterable[str], names: Sequence[str]) -> list[str]:
    """Returns the columns among `names` in which the paths lead."""
    return list(dict.fromkeys(path if path in names else path.split(".")[0] for path in paths))


def paths_of(schema: pa.Schema) -> list[str]:
    """Returns the names of columns, then the dotted paths of fields in structs."""
    paths, waiting = schema.names, [(field.name, field.type) for field in schema]
    while waiting:
        path, dtype = waiting.pop()
        if pa.types.is_struct(dtype):
            inner = [(f"{path}.{field.name}", field.type) for field in dtype]
            paths += [name for name, _ in inner if name not in schema.names]
            waiting += inner
    return paths


def type_at(schema: pa.Schema, path: str) -> pa.DataType | None:
    """Returns the type of a column, or of the field at a dotted path; None if there is none."""
    name, *below = [path] if path in schema.names else path.split(".")
    dtype = schema.field(name).type if name in schema.names else None
    for name in below:
        if dtype is None or not pa.types.is_struct(dtype) or dtype.get_field_index(name) < 0:
            return None
        dtype = dtype.field(name).type
    return dtype


def value_at(record: Mapping[str, Any], path: str) -> Any:
    """Returns the value of a key, or at a dotted path into objects; None if there is none."""
    name, dot, below = path.partition(".")
    if path in record or not dot:
        return record.get(path)
    inner = record.get(name)
    return value_at(inner, below) if isinstance(inner, dict) else None


def paths_in(record: Mapping[str, Any], before: str = "") -> list[str]:
    """Returns the keys of an object, and the dotted paths to those of objects in it."""
    paths = []
    for name, value in record.items():
        paths.append(before + name)
        paths += paths_in(value, f"{before}{name}.") if isinstance(value, dict) else []
    return paths
