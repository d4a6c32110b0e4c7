"""Evaluates a select stage with another threshold, as `sweep` does, one value at a time."""

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
from clipmill.pipeline.explore import questions
from clipmill.pipeline.explore.columns import Bools, Columns
from clipmill.pipeline.ledger.rows.ahead import ahead
from clipmill.pipeline.ledger.rows.stored import stored
from clipmill.pipeline.ledger.selection.counterfactual import inputs_of, select_stage, split_inputs
from clipmill.pipeline.planning.plan import check_threshold
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.planning.selects import thresholds_of, verdicts_of
from clipmill.pipeline.stage import Threshold, Verdicts


@dataclass(frozen=True)
class Counterfactual:
    """The rule with the new number; (N,) the rows that it keeps, and those kept now."""

    rule: str
    keep: Bools
    today: Bools


class Counterfactuals:
    """Verdicts of a root's select stages; caches the inputs of the last threshold used."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self._last: tuple[str, str] | None = None
        self._verdicts: Callable[[Decimal], Verdicts] | None = None
        self._today: Bools = np.zeros(0, bool)
        self._lock = threading.Lock()

    def keep(self, request: questions.Threshold) -> Counterfactual:
        """Returns the verdicts; RecipeError for an unknown threshold or a refused value."""
        planned, threshold = threshold_at(self.columns, request)
        if not isfinite(request.value):
            raise RecipeError(
                f"{request.value} as a threshold", "the handle", "give a plain number"
            )
        if not threshold.is_size:
            stages = self.columns.state.plan.stages
            check_threshold(stages, planned, threshold.column, request.value)
        with self._lock:
            if self._last != (planned.name, threshold.text) or self._verdicts is None:
                self._verdicts = None  # frees memory before more is read
                rows, made = self._tables(planned, threshold)
                self._verdicts = verdicts_of(planned, threshold, rows, made)
                self._today = made[KEEP.name].to_numpy()
                self._last = planned.name, threshold.text
            verdicts = self._verdicts(Decimal(repr(request.value)).normalize())
            return Counterfactual(verdicts.rule, verdicts.keep, self._today)

    def _tables(self, planned: PlannedStage, threshold: Threshold) -> tuple[pa.Table, pa.Table]:
        """Returns the inputs of verdicts: columns that the stage read, and columns that it wrote;
        columns in the page's cache are not read again."""
        columns, sources = self.columns, inputs_of(planned, threshold)
        values = {name: columns.as_stored(where) for name, where in sources.items()}
        others = {name: where for name, where in sources.items() if values[name] is None}
        place: dict[str, Any] = columns.every_place()
        if others or not threshold.by_row:  # a rank breaks ties by uid, which costs most to read
            shards = stored(columns.state, planned.root, others)
            tables = [*ahead(columns.state.run, shards.table, range(len(shards)))]
            table = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
            values |= {name: table[name] for name in others}
            place[UID.name] = table[UID.name]
        return split_inputs(pa.table(place | values))


def threshold_at(columns: Columns, request: questions.Threshold) -> tuple[PlannedStage, Threshold]:
    """Returns the current threshold that a page names."""
    planned = select_stage(columns.state, request.stage)
    for threshold in thresholds_of(planned):
        if (threshold.name, threshold.text) == (request.name, request.text):
            return planned, threshold
    raise RecipeError(
        f"'{request.stage}' has no threshold `{request.text}`", "the page", "load it again"
    )


@dataclass(frozen=True, kw_only=True)
class CutAt:
    """A threshold of a complete select stage, and the stored column that it compares."""

    stage: str
    name: str
    column: str
    sign: str
    value: float | None
    text: str
    is_size: bool


def cuts_of(columns: Columns) -> Iterator[CutAt]:
    """Yields every threshold over the rows of a root."""
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
    """Returns masks of rows by outcome."""
    return {"kept": keep, "dropped": ~keep, "won": keep & ~today, "lost": today & ~keep}
