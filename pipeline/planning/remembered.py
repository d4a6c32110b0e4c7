"""Keeps declarations of a user's own stages, so that reading a run imports no code beside it."""

import base64
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa

from clipmill.metadata.schema import Column
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.stage import DatasetStage, RowStage, Stage

DECLARED = ("version", "determinism", "gives", "reasons", "transient", "artifacts")


class StandIn:
    """A mark of stages whose code is missing: their data can be read, but they cannot run."""


@dataclass(frozen=True, kw_only=True)
class Remembered:
    """The declarations of a stage with own code, as kept in `run.json`."""

    files: dict[str, str]  # path below the folder of own stages -> SHA-256
    is_row: bool
    version: int
    determinism: str
    takes: list[str | list[str]]
    gives: list[str]
    reads: list[str]
    writes: list[dict[str, Any]]
    reasons: list[str]
    transient: list[str]
    artifacts: list[list[str]]
    joins_roots: bool = False
    reads_roots: bool = False


def remembered(
    planned: PlannedStage, chosen: Mapping[str, Any], files: dict[str, str]
) -> Remembered:
    """Returns the declarations of a stage to keep; `chosen` is its `read` in the recipe."""
    stage = planned.stage
    bound = [pair for bindings in planned.bindings for pair in bindings.items()]
    return Remembered(
        files=files,
        is_row=planned.is_row,
        takes=[list(kind) if isinstance(kind, tuple) else kind for kind in stage.takes],
        reads=[
            read if read in chosen or read == column else f"{source}.{column}"
            for read, (source, column) in bound
        ],
        writes=[_as_json(column) for column in stage.writes],
        joins_roots=getattr(stage, "joins_roots", False),
        reads_roots=getattr(stage, "reads_roots", False),
        **{name: _plain(getattr(stage, name)) for name in DECLARED},
    )


def stand_in(kept: Remembered, settings: Mapping[str, Any]) -> Stage:
    """Returns a stage with these declarations and settings that cannot run."""
    kind = RowStage if kept.is_row else DatasetStage
    declared: dict[str, Any] = {name: _tuples(getattr(kept, name)) for name in DECLARED}
    declared |= {"takes": _tuples(kept.takes), "reads": tuple(kept.reads)}
    declared |= {"writes": tuple(map(_column, kept.writes))}
    if not kept.is_row:
        declared |= {"joins_roots": kept.joins_roots, "reads_roots": kept.reads_roots}
    cls = dataclasses.make_dataclass(
        "StandInStage",
        [(name, object) for name in settings],
        bases=(kind, StandIn),
        namespace={**declared, "open": _cannot, "run": _cannot},
        frozen=True,
        kw_only=True,
    )
    return cast(Stage, cls(**settings))


def _cannot(self: Stage, *_: Any) -> None:
    do = "name its folder with --stages"
    raise StageError("the code of this stage is not at hand", type(self).__name__, do)


def _as_json(column: Column) -> dict[str, Any]:
    schema = pa.schema([pa.field("it", column.dtype)]).serialize().to_pybytes()
    fields = {field.name: getattr(column, field.name) for field in dataclasses.fields(column)}
    return fields | {"dtype": base64.b64encode(schema).decode()}


def _column(fields: Mapping[str, Any]) -> Column:
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(fields["dtype"])))
    return Column(**{**fields, "dtype": schema.field(0).type})


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
