"""Checks a stage's answer against the columns and reasons that the stage declares."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import POSITION, REASON, REASON_TYPE, UID
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.stage import Stage


def stored_schema(stage: Stage, sparse: bool = False) -> pa.Schema:
    """Returns the schema of a stage's shard file; a sparse one (later pass) has positions."""
    columns = [UID, *([POSITION] if sparse else []), *stage.writes, REASON]
    return pa.schema([(column.name, column.dtype) for column in columns])


def as_declared(
    planned: PlannedStage, answer: pa.Table, shard: int, schema: pa.Schema | None = None
) -> pa.Table:
    """Returns the columns of an answer that are stored; its reasons may be plain strings.

    Raises StageError if a column is missing or of another type, or a reason is not declared.
    Callers with many batches pass the `stored_schema`, made once.
    """
    place = f"stage '{planned.name}' ({planned.uses}), shard {shard}"
    schema = stored_schema(planned.stage) if schema is None else schema
    is_as_stored = answer.schema.equals(schema, check_metadata=True)  # the usual case, and fast
    rows = answer if is_as_stored else _in_schema(answer, schema, place)
    unknown = unknown_reasons(rows[REASON.name], planned.stage.reasons)
    if unknown:
        raise StageError(
            f"reason {min(unknown)!r} is not declared",
            place,
            f"one of {sorted(planned.stage.reasons)}",
        )
    return rows


def _in_schema(answer: pa.Table, schema: pa.Schema, place: str) -> pa.Table:
    columns: dict[str, Any] = {}
    for field in schema:
        if field.name not in answer.column_names:
            raise StageError(f"no column '{field.name}' came back", place, "mend the stage")
        column = answer[field.name]
        if field.name == REASON.name and _holds_strings(column.type):
            column = column.cast(pa.string()).cast(REASON_TYPE)
        if column.type != field.type:
            raise StageError(
                f"'{field.name}' came back as {column.type}",
                place,
                f"declare or return {field.type}",
            )
        columns[field.name] = column
    return pa.table(columns, schema=schema)


def unknown_reasons(reason: pa.ChunkedArray, declared: Sequence[str]) -> set[str]:
    """Returns the undeclared reasons of rows; unused entries of a dictionary do not count."""
    codes = {code for chunk in reason.chunks for code in chunk.dictionary.to_pylist()}
    if codes <= {*declared}:
        return set()
    rows = pc.unique(reason.unify_dictionaries()).cast(pa.string())
    return set(rows.to_pylist()) - {None, *declared}


def _holds_strings(dtype: pa.DataType) -> bool:
    if pa.types.is_dictionary(dtype):
        return dtype != REASON_TYPE and _holds_strings(dtype.value_type)
    return bool(pa.types.is_string(dtype) or pa.types.is_null(dtype))
