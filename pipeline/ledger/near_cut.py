"""The rows of a select stage that stand nearest to its thresholds, on both sides."""

from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl
import pyarrow as pa

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.ledger.columns import column_at
from clipmill.pipeline.ledger.deciding import about
from clipmill.pipeline.ledger.few import Few, Key, shards_of
from clipmill.pipeline.ledger.table import rows_of
from clipmill.pipeline.planning.selects import thresholds_of
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.stage import Threshold

BEYOND = {">": "<=", ">=": "<", "<": ">=", "<=": ">", "=": "!=", "<>": "="}


@dataclass(frozen=True, kw_only=True)
class NearCut:
    """A threshold of a select stage: a value of `column` stays that is `sign` the `limit`. Of a
    select that keeps the best so many, the limit is the last value that it keeps.

    `reasons` are those of the rows that go for it.
    """

    text: str
    column: str
    sign: str
    limit: float
    reasons: tuple[str, ...]

    def beyond(self) -> pl.Expr:
        """Whether `value` is on the side that goes."""
        value, sign = pl.col("value"), BEYOND[self.sign]
        limit = pl.lit(self.limit)
        if sign in ("<", "<="):
            return value < limit if sign == "<" else value <= limit
        if sign in (">", ">="):
            return value > limit if sign == ">" else value >= limit
        return value != limit if sign == "!=" else value == limit


def cuts_of(state: RunState, stage: str) -> list[NearCut]:
    """The thresholds of a select stage on columns of numbers; RecipeError where it has none."""
    found = [cut for at in _thresholds(state, stage) if (cut := _cut(state, stage, at))]
    if not found:
        others = [
            name
            for name, planned in state.plan.stages.items()
            if planned.is_select and list(_thresholds(state, name))
        ]
        raise RecipeError(
            f"'{stage}' has no threshold on a column of numbers that rows could be near to",
            "--near-cut",
            f"select stages with one: {', '.join(others) or 'none'}",
        )
    return found


def nearest(
    state: RunState, stage: str, cut: NearCut, where: str | None, most: int, seed: int
) -> tuple[Few, Few]:
    """The rows that went for a threshold, and those that stay: of each side the nearest few."""
    key = Key(cut.column, near=cut.limit)
    went, stay = Few(key, most, seed), Few(key, most, seed)
    if cut.reasons:
        asked = rows_of(state, stage, [cut.column], where, cut.reasons).asked
        for rows in shards_of(asked):
            went.add(rows, cut.beyond())
    for rows in shards_of(rows_of(state, stage, [cut.column], where).asked):
        stay.add(rows, pl.col("value").is_not_null())
    return went, stay


def _thresholds(state: RunState, stage: str) -> Iterator[Threshold]:
    """Those on one value of a row that is a number."""
    planned = state.plan.stages[stage]
    for at in thresholds_of(planned):
        source = planned.bindings[0].get(at.column, (stage, at.column))
        dtype = state.plan.schema(*source)
        if at.item is None and (pa.types.is_integer(dtype) or pa.types.is_floating(dtype)):
            yield at


def _cut(state: RunState, stage: str, at: Threshold) -> NearCut | None:
    planned = state.plan.stages[stage]
    source = planned.bindings[0].get(at.column, (stage, at.column))
    column = at.column
    if "." in column or column_at(state.plan, stage, column) != source:
        column = ".".join(source)
    reasons = dict.fromkeys([*planned.stage.reasons, *state.stages[stage].codes])
    its = tuple(code for code in reasons if code and at in about(planned, code))
    sign, limit, text = at.sign, float(at.value), at.text
    if at.is_size:
        own = next((it for it in planned.stage.writes if it.name == at.column), None)
        is_rank = source[0] == stage and (own is None or own.better != "high")
        last = _last(state, stage, column, is_rank)
        if last is None:
            return None
        sign, limit = ("<=" if is_rank else ">="), last
        text = f"{text}: {'to' if is_rank else 'from'} {last:.4g}"
    return NearCut(text=text, column=column, sign=sign, limit=limit, reasons=its)


def _last(state: RunState, stage: str, column: str, is_rank: bool) -> float | None:
    """The value of the last row that a select keeps: of ranks the highest, else the lowest."""
    few = Few(Key(column, is_rank), 1, 0)
    asked = rows_of(state, stage, [column]).asked
    for rows in shards_of(asked):
        few.add(rows, pl.col("value").is_not_null())
    return None if few.value is None else float(few.value)
