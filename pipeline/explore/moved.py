"""What a select stage would keep with a threshold elsewhere: `sweep`, one value at a time."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from math import isfinite
from typing import Any

import numpy as np
import pyarrow as pa

from clipmill.metadata.schema import KEEP, UID
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.explore import asked
from clipmill.pipeline.explore.columns import Bools, Columns
from clipmill.pipeline.ledger.rows.ahead import ahead
from clipmill.pipeline.ledger.rows.stored import stored
from clipmill.pipeline.ledger.selection.counterfactual import asked_of, read_and_made, select_stage
from clipmill.pipeline.planning.plan import check_threshold
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.planning.selects import thresholds_of, verdicts_of
from clipmill.pipeline.stage import Threshold, Verdicts


@dataclass(frozen=True)
class Moved:
    """The rule with the number put in; (N,) what it keeps, and what is kept today."""

    rule: str
    keep: Bools
    today: Bools


class Moves:
    """Verdicts of a root's select stages. What the threshold asked for last reads is held."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self._of: tuple[str, str] | None = None
        self._verdicts: Callable[[Decimal], Verdicts] | None = None
        self._today: Bools = np.zeros(0, bool)
        self._lock = threading.Lock()

    def keep(self, wanted: asked.Threshold) -> Moved:
        """RecipeError where there is no such threshold, or the stage refuses the value."""
        planned, threshold = threshold_at(self.columns, wanted)
        if not isfinite(wanted.value):
            raise RecipeError(f"{wanted.value} as a threshold", "the handle", "give a plain number")
        if not threshold.is_size:
            check_threshold(self.columns.state.plan.stages, planned, threshold.column, wanted.value)
        with self._lock:
            if self._of != (planned.name, threshold.text) or self._verdicts is None:
                self._verdicts = None  # what was held goes first
                rows, made = self._tables(planned, threshold)
                self._verdicts = verdicts_of(planned, threshold, rows, made)
                self._today = made[KEEP.name].to_numpy()
                self._of = planned.name, threshold.text
            verdicts = self._verdicts(Decimal(repr(wanted.value)).normalize())
            return Moved(verdicts.rule, verdicts.keep, self._today)

    def _tables(self, planned: PlannedStage, threshold: Threshold) -> tuple[pa.Table, pa.Table]:
        """What the verdicts are made of: columns that the stage read, and that it made. What the
        page draws is held already."""
        columns, wanted = self.columns, asked_of(planned, threshold)
        found = {name: columns.as_stored(where) for name, where in wanted.items()}
        others = {name: where for name, where in wanted.items() if found[name] is None}
        place: dict[str, Any] = columns.every_place()
        if others or not threshold.by_row:  # uids are most of what is read for it
            shards = stored(columns.state, planned.root, others)
            tables = [*ahead(columns.state.run, shards.table, range(len(shards)))]
            whole = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
            found |= {name: whole[name] for name in others}
            place[UID.name] = whole[UID.name]
        return read_and_made(pa.table(place | found))


def threshold_at(columns: Columns, wanted: asked.Threshold) -> tuple[PlannedStage, Threshold]:
    """The threshold of today that a page names."""
    planned = select_stage(columns.state, wanted.stage)
    for threshold in thresholds_of(planned):
        if (threshold.name, threshold.text) == (wanted.name, wanted.text):
            return planned, threshold
    raise RecipeError(
        f"'{wanted.stage}' has no threshold `{wanted.text}`", "the page", "load it again"
    )


@dataclass(frozen=True, kw_only=True)
class CutAt:
    """A number by which a complete select stage decides, and the stored column that it cuts."""

    stage: str
    name: str
    column: str
    sign: str
    value: float | None
    text: str
    is_size: bool


def cuts_of(columns: Columns) -> Iterator[CutAt]:
    """Every threshold over the rows of a root."""
    for name, stage in columns.state.stages.items():
        planned = stage.planned
        if planned.root != columns.root or not stage.complete or not planned.is_select:
            continue
        for threshold in thresholds_of(planned):
            where = planned.bindings[0].get(threshold.column, (name, threshold.column))
            yield CutAt(
                stage=name,
                name=threshold.name,
                column=".".join(where),
                sign=threshold.sign,
                value=threshold.value if isfinite(threshold.value) else None,
                text=threshold.text,
                is_size=threshold.is_size,
            )


def sides(keep: Bools, today: Bools) -> dict[str, Bools]:
    """Rows by what becomes of them."""
    return {"kept": keep, "dropped": ~keep, "won": keep & ~today, "lost": today & ~keep}
