"""Shows what one stage stored for one row."""

from dataclasses import dataclass
from math import isfinite
from typing import Any

from clipmill.metadata.schema import IMAGE, REASON
from clipmill.pipeline.ledger.rows.stored import Place
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.run_folder.state import RunState

LONG = 200  # characters of a value that are shown


@dataclass(frozen=True, kw_only=True)
class Keeper:
    """Another row that a stage names in `column`; `dropped_by` are the select stages that dropped
    that row too. Its place is null if it is not in the pool."""

    column: str
    uid: str
    shard: int | None
    position: int | None
    text: str | None
    dropped_by: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """A stage's values at one row, shortened for display, and its reason; null if it has values.

    `keeper` is the row that it names. `keeper_of` counts the rows that name this one; null for a
    stage that names no keepers, or that names one for this row.
    """

    stage: str
    uses: str
    values: dict[str, Any]
    reason: str | None
    folder: str
    keeper: Keeper | None = None
    keeper_of: int | None = None


def stage_row(state: RunState, planned: PlannedStage, place: Place) -> StageRow:
    """Returns one stage's columns and reason at one row, without images."""
    names = [column.name for column in planned.stage.writes if column.name != IMAGE.name]
    values = state.cell(planned.name, *place, [*names, REASON.name])
    reason = values.pop(REASON.name)
    return StageRow(
        stage=planned.name,
        uses=planned.uses,
        values={name: shown(value) for name, value in values.items()},
        reason=reason,
        folder=str(state.stored[planned.name].folder),
    )


def shown(value: Any) -> Any:
    """Returns a value for JSON: bytes as hex, long texts and lists cut."""
    if isinstance(value, bytes):
        return value.hex() if len(value) <= 32 else f"{len(value)} bytes"
    if isinstance(value, list) and len(value) > 8:
        return f"[{shown(value[0])}, {shown(value[1])}, … {len(value)} values]"
    if isinstance(value, list):
        return [shown(item) for item in value]
    if isinstance(value, float) and not isfinite(value):
        return str(value)  # JSON has no NaN or infinity
    if value is None or isinstance(value, bool | int | float):
        return value
    text = str(value)
    return text if len(text) <= LONG else f"{text[:LONG]}… ({len(text)} characters)"
