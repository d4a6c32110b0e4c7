"""What a select stage answers about its verdicts. A mistake in the stage's own code is named."""

import contextlib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from clipmill.pipeline.errors import ClipmillError, RecipeError
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.stage import Parts, Selects, Surveys, Threshold, Varies, Verdicts

VARIED = "--vary"  # where a value stands that a stage refuses


def thresholds_of(planned: PlannedStage) -> tuple[Threshold, ...]:
    """Its thresholds; none where the stage does not answer."""
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
    """Its verdicts at each value; RecipeError where the stage refuses a value."""
    assert isinstance(planned.stage, Selects)  # it has a threshold
    count = 0
    with _answering(planned, "verdicts"):
        with _refusing("change the range"):
            asked = surveyed or partial(planned.stage.verdicts, threshold, values)
            for verdicts in asked(rows, made):
                if len(verdicts.keep) != len(rows):
                    raise TypeError(f"{len(verdicts.keep)} verdicts on {len(rows)} rows")
                count += 1
                yield verdicts
        if count != len(values):
            raise TypeError(f"{count} answers for {len(values)} values")


def asks_by_part(planned: PlannedStage, threshold: Threshold) -> bool:
    """Whether a threshold can be asked without all rows of the pool at hand."""
    return threshold.by_row or isinstance(planned.stage, Surveys)


def verdicts_by_part(
    planned: PlannedStage,
    threshold: Threshold,
    values: Sequence[Decimal],
    parts: Parts | None,
) -> Callable[[pa.Table, pa.Table], Iterator[Verdicts]]:
    """Its verdicts at each value on some rows, of which `parts` gives all by parts; None where they
    are asked for all rows at once."""
    surveyed = None
    if parts is not None and not threshold.by_row:
        assert isinstance(planned.stage, Surveys)  # as `asks_by_part` says
        with _answering(planned, "surveyed"), _refusing("change the range"):
            surveyed = planned.stage.surveyed(threshold, values, parts)
    return partial(verdicts_at, planned, threshold, values, surveyed=surveyed)


def verdicts_of(
    planned: PlannedStage, threshold: Threshold, rows: pa.Table, made: pa.Table
) -> Callable[[Decimal], Verdicts]:
    """Its verdicts at a value, asked for one at a time; RecipeError where it refuses the value."""
    if not isinstance(planned.stage, Varies):
        return lambda value: next(verdicts_at(planned, threshold, [value], rows, made))
    with _answering(planned, "varying"):
        varying = planned.stage.varying(threshold, rows, made)

    def verdicts(value: Decimal) -> Verdicts:
        with _answering(planned, "varying"), _refusing("change the value"):
            return varying(value)

    return verdicts


def explanation(planned: PlannedStage, reason: str, made: Mapping[str, Any]) -> str:
    """Its own words on why a row is dropped; empty where it has none."""
    if not isinstance(planned.stage, Selects):
        return ""
    with _answering(planned, "explain"):
        return planned.stage.explain(reason, made)


@contextlib.contextmanager
def _refusing(do: str) -> Iterator[None]:
    """A ValueError of the stage is that of who asks."""
    try:
        yield
    except ValueError as error:
        raise RecipeError(str(error), VARIED, do) from None


@contextlib.contextmanager
def _answering(planned: PlannedStage, method: str) -> Iterator[None]:
    try:
        yield
    except ClipmillError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise RecipeError(
            f"`{method}` of {planned.uses} failed: {type(error).__name__}: {error}",
            f"{planned.where}, {Path(last.filename).name}:{last.lineno}",
            "mend the stage's file",
        ) from error
