"""A stage of one's own as its run remembers it: verbs that look import no code beside the data."""

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
    """Marks a stage whose code is not at hand: what it stored can be read, and no more."""


@dataclass(frozen=True, kw_only=True)
class Remembered:
    """What of a stage with own code a run keeps in `run.json`."""

    files: dict[str, str]  # SHA-256 by path below the folder of own stages
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
    """What a run keeps of a stage; `chosen` is the recipe's `read` of it."""
    stage = planned.stage
    bound = [pair for bindings in planned.bindings for pair in bindings.items()]
    return Remembered(
        files=files,
        is_row=planned.is_row,
        takes=[list(one) if isinstance(one, tuple) else one for one in stage.takes],
        reads=[
            read if read in chosen or read == column else f"{source}.{column}"
            for read, (source, column) in bound
        ],
        writes=[_as_json(column) for column in stage.writes],
        joins_roots=getattr(stage, "joins_roots", False),
        reads_roots=getattr(stage, "reads_roots", False),
        **{name: _plain(getattr(stage, name)) for name in DECLARED},
    )


def stand_in(said: Remembered, settings: Mapping[str, Any]) -> Stage:
    """A stage that declares the same, has these settings, and cannot work."""
    kind = RowStage if said.is_row else DatasetStage
    declared: dict[str, Any] = {name: _tuples(getattr(said, name)) for name in DECLARED}
    declared |= {"takes": _tuples(said.takes), "reads": tuple(said.reads)}
    declared |= {"writes": tuple(_column(it) for it in said.writes)}
    if not said.is_row:
        declared |= {"joins_roots": said.joins_roots, "reads_roots": said.reads_roots}
    made = dataclasses.make_dataclass(
        "StandInStage",
        [(name, object) for name in settings],
        bases=(kind, StandIn),
        namespace={**declared, "open": _cannot, "run": _cannot},
        frozen=True,
        kw_only=True,
    )
    return cast(Stage, made(**settings))


def _cannot(self: Stage, *_: Any) -> None:
    do = "name its folder with --stages"
    raise StageError("the code of this stage is not at hand", type(self).__name__, do)


def _as_json(column: Column) -> dict[str, Any]:
    schema = pa.schema([pa.field("it", column.dtype)]).serialize().to_pybytes()
    kept = {field.name: getattr(column, field.name) for field in dataclasses.fields(column)}
    return kept | {"dtype": base64.b64encode(schema).decode()}


def _column(said: Mapping[str, Any]) -> Column:
    field = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(said["dtype"])))
    return Column(**{**said, "dtype": field.field(0).type})


def _plain(value: Any) -> Any:
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(one) for one in value) if isinstance(value, list) else value
