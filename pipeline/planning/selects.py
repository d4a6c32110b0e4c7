"""Asks select stages for thresholds and verdicts; errors in a stage's code name the stage."""

import contextlib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from clipmill.metadata.damage import DamagedError
from clipmill.pipeline.errors import ClipmillError, RecipeError
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.stage import Parts, Selects, Surveys, Threshold, Varies, Verdicts

VARIED = "--vary"  # the option with values that a stage may refuse


def thresholds_of(planned: PlannedStage) -> tuple[Threshold, ...]:
    """Returns a stage's thresholds; none if it is no select with thresholds."""
    if not isinstance(planned.stage, Selects):
        return ()
    with _answering(planned, "thresholds"):
        thresholds = tuple(planned.stage.thresholds())
        known = {*planned.bindings[0], *(column.name for column in planned.stage.writes)}
        for threshold in thresholds:
            if threshold.column not in known:
                raise ValueError(f"column '{threshold.column}' is neither read nor written")
    return thresholds


def verdicts_at(
    planned: PlannedStage,
    threshold: Threshold,
    values: Sequence[Decimal],
    rows: pa.Table,
    made: pa.Table,
    surveyed: Callable[[pa.Table, pa.Table], Iterator[Verdicts]] | None = None,
) -> Iterator[Verdicts]:
    """Yields a stage's verdicts at each value; raises RecipeError if it refuses a value."""
    assert isinstance(planned.stage, Selects)  # it has a threshold
    count = 0
    with _answering(planned, "verdicts"):
        with _refusing("change the range"):
            function = surveyed or partial(planned.stage.verdicts, threshold, values)
            for verdicts in function(rows, made):
                if len(verdicts.keep) != len(rows):
                    raise TypeError(f"{len(verdicts.keep)} verdicts on {len(rows)} rows")
                count += 1
                yield verdicts
        if count != len(values):
            raise TypeError(f"{count} answers for {len(values)} values")


def asks_by_part(planned: PlannedStage, threshold: Threshold) -> bool:
    """Returns whether a threshold can be evaluated without all rows of the pool in memory."""
    return threshold.by_row or isinstance(planned.stage, Surveys)


def verdicts_by_part(
    planned: PlannedStage, threshold: Threshold, values: Sequence[Decimal], parts: Parts | None
) -> Callable[[pa.Table, pa.Table], Iterator[Verdicts]]:
    """Returns a function of rows that yields a stage's verdicts at each value.

    `parts` yields all rows by parts; None if the function is called with all rows at once.
    """
    surveyed = None
    if parts is not None and not threshold.by_row:
        assert isinstance(planned.stage, Surveys)  # else `asks_by_part` is False
        with _answering(planned, "surveyed"), _refusing("change the range"):
            surveyed = planned.stage.surveyed(threshold, values, parts)
    return partial(verdicts_at, planned, threshold, values, surveyed=surveyed)


def verdicts_of(
    planned: PlannedStage, threshold: Threshold, rows: pa.Table, made: pa.Table
) -> Callable[[Decimal], Verdicts]:
    """Returns a function of a value that returns the verdicts; it may raise RecipeError."""
    if not isinstance(planned.stage, Varies):
        return lambda value: next(verdicts_at(planned, threshold, [value], rows, made))
    with _answering(planned, "varying"):
        varying = planned.stage.varying(threshold, rows, made)

    def verdicts(value: Decimal) -> Verdicts:
        with _answering(planned, "varying"), _refusing("change the value"):
            return varying(value)

    return verdicts


def explanation(planned: PlannedStage, reason: str, made: Mapping[str, Any]) -> str:
    """Returns the stage's own explanation of why a row is dropped; empty if it has none."""
    if not isinstance(planned.stage, Selects):
        return ""
    with _answering(planned, "explain"):
        return planned.stage.explain(reason, made)


@contextlib.contextmanager
def _refusing(do: str) -> Iterator[None]:
    """Turns a ValueError of the stage into a RecipeError about the value asked for."""
    try:
        yield
    except ValueError as error:
        raise RecipeError(str(error), VARIED, do) from None


@contextlib.contextmanager
def _answering(planned: PlannedStage, method: str) -> Iterator[None]:
    try:
        yield
    except (ClipmillError, DamagedError):
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        found = f"`{method}` of {planned.uses} failed: {type(error).__name__}: {error}"
        where = f"{planned.where}, {Path(last.filename).name}:{last.lineno}"
        raise RecipeError(found, where, "mend the stage's file") from error
