"""The rows of a stage with columns of any stage over them, as a lazy Polars frame."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import polars as pl
import pyarrow as pa

from clipmill.metadata.passes import NOT_SELECTED
from clipmill.metadata.schema import IMAGE, UID
from clipmill.pipeline.errors import RecipeError, StageError, did_you_mean
from clipmill.pipeline.ledger.asked import Asked, plain
from clipmill.pipeline.ledger.columns import PLACE, column_at, rows_stage
from clipmill.pipeline.ledger.funnel import Unfinished
from clipmill.pipeline.ledger.scan import frames
from clipmill.pipeline.planning.plan import check_threshold
from clipmill.pipeline.planning.settings import declaring, stage_class
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.run_folder.words import BEFORE

Dropped = str | Sequence[str] | bool | None
LONGEST = 1_000_000  # characters of a condition: 28,000 uids are read in some seconds


class UnfinishedWarning(UserWarning):
    """Rows are left out, as a stage has not come to them."""


def table(
    state: RunState,
    stage: str,
    columns: Sequence[str],
    where: str | None = None,
    dropped: Dropped = None,
) -> pl.LazyFrame:
    """`uid`, then the columns under the names they are asked by: see `rows_of`.

    Text is text, and a uid its 32 hex digits; other values are as stored. UnfinishedWarning where
    shards are left out, as a stage has not come to them.
    """
    rows = rows_of(state, stage, columns, where, dropped)
    if rows.unfinished:
        warnings.warn(said(rows.unfinished), UnfinishedWarning, stacklevel=2)
    return rows.lazy()


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows that are asked for, and the types of their columns; nothing is read yet.

    `unfinished` are the stages read that have not come to all shards: the others' rows are there.
    """

    asked: Asked
    schema: pl.Schema
    unfinished: tuple[Unfinished, ...]

    def lazy(self) -> pl.LazyFrame:
        """The frame; a query of it reads what it uses."""
        from polars.io.plugins import register_io_source

        return register_io_source(partial(frames, self.asked), schema=self.schema)


def rows_of(
    state: RunState,
    stage: str,
    columns: Sequence[str],
    where: str | None = None,
    dropped: Dropped = None,
) -> Rows:
    """The rows that a select stage keeps, or that another was given, also where it has no value.

    With `dropped`, those that it dropped or has no value for: for any reason (True), or for those
    named. `where` is a condition as `select.where` has it. A column is `column` or `stage.column`
    of any stage over these rows; `shard` and `position` are a row's place, `reason` why the stage
    has no value. RecipeError where a name or the condition is wrong.
    """
    root = rows_stage(state.plan, stage)
    names = [columns] if isinstance(columns, str) else columns
    bound = {n: column_at(state.plan, stage, n) for n in dict.fromkeys([UID.name, *names])}
    condition, asks = _condition(state, stage, where) if where is not None else (None, {})
    used = tuple(dict.fromkeys([root, stage, *(at for at, _ in (*bound.values(), *asks.values()))]))
    types = {name: _type(state, *source) for name, source in bound.items()}
    is_large = any(pa.types.is_nested(dtype) for dtype in types.values()) or IMAGE.name in {
        column for _, column in bound.values()
    }
    asked = Asked(
        state=state,
        stage=stage,
        bound={**asks, **bound},
        names=tuple(bound),
        condition=condition,
        reasons=_reasons(state, stage, dropped),
        used=used,
        is_large=is_large,
    )
    no_row = pa.Table.from_batches([], pa.schema(types))
    return Rows(asked=asked, schema=plain(no_row).schema, unfinished=_unfinished(state, used))


def said(unfinished: Sequence[Unfinished]) -> str:
    """Which stages have not come to all shards, in words."""
    parts = [
        f"'{it.stage}' has {it.shards} of {'?' if it.total is None else it.total} shards"
        for it in unfinished
    ]
    return f"{', '.join(parts)}: the rows of the others are left out"


def _type(state: RunState, stage: str, column: str) -> pa.DataType:
    return pa.int32() if column in PLACE else state.plan.schema(stage, column)


def _condition(state: RunState, stage: str, where: str) -> tuple[Any, dict[str, tuple[str, str]]]:
    """A stage that asks this condition, and where it finds its columns."""
    if len(where) > LONGEST:
        raise RecipeError(
            f"a condition of {len(where):,} characters, and {LONGEST:,} are the most",
            "the condition",
            "name the uids in a file, which `select.uid_list` reads in a recipe",
        )
    asks_rows = stage_class(declaring("asked_in")[0], "the condition")
    try:
        condition: Any = asks_rows(**{asks_rows.asked_in: where})
        asks = {name: column_at(state.plan, stage, name) for name in condition.reads}
        condition.check({name: _type(state, *source) for name, source in asks.items()})
    except StageError as error:
        raise RecipeError(error.args[0], "the condition", error.args[2]) from None
    planned = replace(
        state.plan.stages[stage], stage=condition, bindings=(asks,), where="the condition"
    )
    for threshold in condition.thresholds():
        check_threshold(state.plan.stages, planned, threshold.column, threshold.value)
    return condition, asks


def _reasons(state: RunState, stage: str, dropped: Dropped) -> frozenset[str] | None:
    """The reasons asked for: None for no such rows, empty for any."""
    if dropped is None or dropped is False:
        return None
    if dropped is True:
        return frozenset()
    asked = [dropped] if isinstance(dropped, str) else list(dropped)
    own = drops(state, stage)
    for code in asked:
        if code in (*own, NOT_SELECTED, BEFORE):
            continue
        root = state.plan.stages[stage].root
        over = [name for name, one in state.plan.stages.items() if one.root == root]
        others = [name for name in over if name != stage and code in drops(state, name)]
        at = state.stages[stage]
        if others and not (at.complete and all(at.columns["counts"].to_pylist())):
            continue  # a later shard may have it from there
        do = did_you_mean(code, own, f"reasons of '{stage}'")
        if others:
            do = f"it is a reason of {' and '.join(map(repr, others))}: ask for those rows there"
        raise RecipeError(f"'{stage}' drops no row for '{code}'", "dropped", do)
    return frozenset(asked)


def drops(state: RunState, stage: str) -> list[str]:
    """The reasons that a stage can give, and those that it has stored, of earlier stages too."""
    stored = filter(None, state.stages[stage].codes)
    return list(dict.fromkeys([*state.plan.stages[stage].stage.reasons, *stored]))


def _unfinished(state: RunState, used: Sequence[str]) -> tuple[Unfinished, ...]:
    found = []
    for name in used:
        at = state.stages[name]
        if not at.complete:
            failed = sum(failure is not None for failure in at.failures.values())
            done = len(at.shards)
            found.append(Unfinished(stage=name, shards=done, total=at.total, failed=failed))
    return tuple(found)
