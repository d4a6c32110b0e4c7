"""Describes queries over stored rows: which rows of a stage, which columns, and their sources.

`table` reads the rows as a frame, `top` the first by some key; `uids` finds rows by their uid.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl
import pyarrow as pa

from clipmill.metadata.passes import NOT_SELECTED
from clipmill.metadata.schema import IMAGE, REASON, UID
from clipmill.pipeline.errors import RecipeError, StageError, did_you_mean
from clipmill.pipeline.ledger.rows.columns import PLACE, column_at, rows_stage
from clipmill.pipeline.planning.plan import check_threshold
from clipmill.pipeline.planning.planned import Binding
from clipmill.pipeline.planning.settings import declaring, stage_class
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.run_folder.words import BEFORE

Dropped = str | Sequence[str] | bool | None
LONGEST = 1_000_000  # characters of a condition: 28,000 uids parse in some seconds
ABSENT = (NOT_SELECTED, BEFORE)  # reasons of rows outside a stage's input


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """An incomplete stage: shards done, of `total` if that is known, and failed shards."""

    stage: str
    shards: int
    total: int | None
    failed: int


@dataclass(frozen=True, kw_only=True)
class Query:
    """Rows of a stage with columns of any stage over them; nothing is read yet.

    `names` are the columns of the result, with their types in `schema`; `bound` includes those of
    the condition. `reasons`: None for rows that the stage keeps or was given, empty for any dropped
    row, else these reasons. `unfinished` are stages of the query that lack shards.
    """

    state: RunState
    stage: str
    bound: Mapping[str, Binding]
    names: tuple[str, ...]
    condition: Any  # a `select.where` stage, or None
    reasons: frozenset[str] | None
    used: tuple[str, ...]  # stages to read, the root first
    is_large: bool
    schema: pl.Schema
    unfinished: tuple[Unfinished, ...]

    @property
    def shards(self) -> list[int]:
        """Returns the shards that all stages of the query have, and that may hold wanted rows."""
        stages = [self.state.stages[name].shards for name in self.used]
        common = (shard for shard in sorted(stages[0]) if all(shard in shards for shards in stages))
        return [shard for shard in common if self.by_record(shard) != 0]

    def by_record(self, shard: int) -> int | None:
        """Returns how many rows of a shard have a wanted reason, by its record; None if unknown."""
        counts = self.state.stages[self.stage].recorded(shard)
        if counts is None:
            return None
        return sum(rows for code, rows in counts.items() if self.wants(code))

    def wants(self, code: str) -> bool:
        """Returns whether the query wants rows with this reason, "" for none."""
        codes, are_wanted = self.codes
        return (code in codes) is are_wanted

    @property
    def codes(self) -> tuple[frozenset[str], bool]:
        """Returns reasons, "" for none, and whether the query wants these or all others."""
        is_select = self.state.plan.stages[self.stage].is_select
        if self.reasons is None:
            return (frozenset({""}), True) if is_select else (frozenset(ABSENT), False)
        if self.reasons:
            return self.reasons, True
        return frozenset({"", NOT_SELECTED, *(() if is_select else (BEFORE,))}), False

    def source(self, name: str) -> Binding:
        """Returns the stage and stored name of a column."""
        return (self.stage, name) if name == REASON.name else self.bound[name]

    def is_loaded(self, name: str) -> bool:
        """Returns whether a column is virtual: read from its stage's source, not stored."""
        stage, column = self.source(name)
        source = self.state.stored[stage].stage
        return source is not None and column in {virtual.name for virtual in source.virtual}


def query(
    state: RunState,
    stage: str,
    columns: Sequence[str],
    where: str | None = None,
    dropped: Dropped = None,
) -> Query:
    """Returns a query for the rows that a select keeps, or that another stage was given.

    With `dropped`, for rows that it dropped or has no value for: for any reason (True), or for
    the named ones. `where` is a condition as in `select.where`. A column is `column` or
    `stage.column` of any stage over these rows; `shard` and `position` are a row's place, `reason`
    says why the stage has no value. RecipeError if a name or the condition is wrong.
    """
    root = rows_stage(state.plan, stage)
    names = [columns] if isinstance(columns, str) else columns
    bound = {n: column_at(state.plan, stage, n) for n in dict.fromkeys([UID.name, *names])}
    condition, extra = _condition(state, stage, where) if where is not None else (None, {})
    sources = [name for name, _ in (*bound.values(), *extra.values())]
    used = tuple(dict.fromkeys([root, stage, *sources]))
    types = {name: type_at(state, *source) for name, source in bound.items()}
    is_large = any(pa.types.is_nested(dtype) for dtype in types.values()) or IMAGE.name in {
        column for _, column in bound.values()
    }
    no_row = pa.Table.from_batches([], pa.schema(types))
    return Query(
        state=state,
        stage=stage,
        bound={**extra, **bound},
        names=tuple(bound),
        condition=condition,
        reasons=_reasons(state, stage, dropped),
        used=used,
        is_large=is_large,
        schema=plain(no_row).schema,
        unfinished=unfinished(state, used),
    )


def type_at(state: RunState, stage: str, column: str) -> pa.DataType:
    """Returns the type of a stage's column, or of a row's place."""
    return pa.int32() if column in PLACE else state.plan.schema(stage, column)


def _condition(state: RunState, stage: str, where: str) -> tuple[Any, dict[str, tuple[str, str]]]:
    """Returns a stage that evaluates the condition, and the sources of its columns."""
    if len(where) > LONGEST:
        raise RecipeError(
            f"a condition of {len(where):,} characters, and {LONGEST:,} are the most",
            "the condition",
            "name the uids in a file, which `select.uid_list` reads in a recipe",
        )
    stage_type = stage_class(declaring("asked_in")[0], "the condition")
    try:
        condition: Any = stage_type(**{stage_type.asked_in: where})
        sources = {name: column_at(state.plan, stage, name) for name in condition.reads}
        condition.check({name: type_at(state, *source) for name, source in sources.items()})
    except StageError as error:
        raise RecipeError(error.args[0], "the condition", error.args[2]) from None
    planned = replace(
        state.plan.stages[stage], stage=condition, bindings=(sources,), where="the condition"
    )
    for threshold in condition.thresholds():
        check_threshold(state.plan.stages, planned, threshold.column, threshold.value)
    return condition, sources


def _reasons(state: RunState, stage: str, dropped: Dropped) -> frozenset[str] | None:
    """Returns the reasons of wanted rows: None without `dropped`, empty for any."""
    if dropped is None or dropped is False:
        return None
    if dropped is True:
        return frozenset()
    codes = [dropped] if isinstance(dropped, str) else list(dropped)
    own, root = drops(state, stage), state.plan.stages[stage].root
    over = [name for name, planned in state.plan.stages.items() if planned.root == root]
    for code in codes:
        if code in (*own, NOT_SELECTED, BEFORE):
            continue
        others = [name for name in over if name != stage and code in drops(state, name)]
        stage_state = state.stages[stage]
        if others and not (stage_state.complete and all(stage_state.columns["counts"].to_pylist())):
            continue  # a later shard may take it over from there
        do = did_you_mean(code, own, f"reasons of '{stage}'")
        if others:
            do = f"it is a reason of {' and '.join(map(repr, others))}: ask for those rows there"
        raise RecipeError(f"'{stage}' drops no row for '{code}'", "dropped", do)
    return frozenset(codes)


def drops(state: RunState, stage: str) -> list[str]:
    """Returns the reasons that a stage can give or has stored, with those of earlier stages."""
    codes = filter(None, state.stages[stage].codes)
    return list(dict.fromkeys([*state.plan.stages[stage].stage.reasons, *codes]))


def unfinished(state: RunState, names: Iterable[str]) -> tuple[Unfinished, ...]:
    """Returns those of the stages that are not complete."""
    stages = {name: state.stages[name] for name in names}
    return tuple(
        Unfinished(
            stage=name,
            shards=len(stage.shards),
            total=stage.total if stage.planned.gives_rows else None,
            failed=stage.failed,
        )
        for name, stage in stages.items()
        if not stage.complete
    )


def plain(table: pa.Table) -> pl.DataFrame:
    """Returns the table with dictionaries as text and uids as hex digits."""
    return pl.DataFrame(table).with_columns(
        as_text(field.name, field.type) for field in table.schema if is_coded(field.type)
    )


def is_coded(dtype: pa.DataType) -> bool:
    """Returns whether values of a stored type are shown as text."""
    words = dtype.value_type if pa.types.is_list(dtype) else dtype
    return bool(dtype == UID.dtype or pa.types.is_dictionary(words))


def as_text(name: str, dtype: pa.DataType) -> pl.Expr:
    """Returns the column as text: uids as hex digits, dictionaries as words."""
    if dtype == UID.dtype:
        return pl.col(name).bin.encode("hex")
    return pl.col(name).cast(pl.List(pl.String) if pa.types.is_list(dtype) else pl.String)
