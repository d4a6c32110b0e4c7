"""Shows rows of one stage: a sample, the top rows by a column, or the nearest to its thresholds on
both sides.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import polars as pl
import pyarrow as pa

from clipmill.metadata.schema import (
    IMAGE,
    IMAGE_BYTES,
    KEEP,
    POSITION,
    REASON,
    SHARD,
    TEXT,
    UID,
    URL,
)
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.ledger.rows.columns import column_at, rows_stage
from clipmill.pipeline.ledger.rows.query import Unfinished, drops, query, type_at
from clipmill.pipeline.ledger.rows.stage_row import shown
from clipmill.pipeline.ledger.rows.stored import Place, binding
from clipmill.pipeline.ledger.rows.top import Item, Key, Row, TopRows, is_orderable, values_at
from clipmill.pipeline.ledger.selection.causes import named_in
from clipmill.pipeline.ledger.selection.scores import GOES
from clipmill.pipeline.ledger.selection.verdict import about
from clipmill.pipeline.planning.planned import Binding
from clipmill.pipeline.planning.selects import thresholds_of
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.run_folder.words import in_words
from clipmill.pipeline.stage import Threshold

HAS_VALUE = pl.col("value").is_not_null()


@dataclass(frozen=True, kw_only=True)
class NearCut:
    """A threshold of a select stage: a value of `column` is kept if it is `sign` the `limit`.

    For a select of the top k, `is_size`, the limit is the last value kept: rows with an equal one
    are on both sides. `reasons` are those of rows that it drops; `item` of a list decides.
    """

    text: str
    column: str
    sign: str
    limit: float
    reasons: tuple[str, ...]
    is_size: bool = False
    item: Item = None

    def beyond(self) -> pl.Expr:
        """Returns an expression: whether `value` may be that of a row which it drops."""
        return HAS_VALUE if self.is_size else GOES[self.sign](pl.col("value"), pl.lit(self.limit))


def cuts_of(state: RunState, stage: str) -> list[NearCut]:
    """Returns a select stage's thresholds on columns of numbers; RecipeError if it has none."""
    cuts = [cut for found in _thresholds(state, stage) if (cut := _cut(state, stage, *found))]
    if not cuts:
        selects = [name for name, planned in state.plan.stages.items() if planned.is_select]
        others = [name for name in selects if list(_thresholds(state, name))]
        raise RecipeError(
            f"'{stage}' has no threshold on a column of numbers that rows could be near to",
            "--near-cut",
            f"select stages with one: {', '.join(others) or 'none'}",
        )
    return cuts


def _thresholds(state: RunState, stage: str) -> Iterator[tuple[Threshold, Binding]]:
    """Yields the thresholds on a number of a row, or on the greatest or least of its numbers, each
    with the source of its column."""
    planned = state.plan.stages[stage]
    for threshold in thresholds_of(planned):
        source = planned.bindings[0].get(threshold.column, (stage, threshold.column))
        dtype = state.plan.schema(*source)
        dtype = dtype.value_type if threshold.item else dtype
        if pa.types.is_integer(dtype) or pa.types.is_floating(dtype):
            yield threshold, source


def _cut(state: RunState, stage: str, threshold: Threshold, source: Binding) -> NearCut | None:
    planned = state.plan.stages[stage]
    column = _name(state, stage, threshold.column, source)
    reasons = dict.fromkeys([*planned.stage.reasons, *state.stages[stage].codes])
    own_reasons = tuple(code for code in reasons if code and threshold in about(planned, code))
    sign, limit, text = threshold.sign, float(threshold.value), threshold.text
    if threshold.is_size:
        better = {written.name: written.better for written in planned.stage.writes}
        is_rank = source[0] == stage and better[threshold.column] != "high"
        last = _last(state, stage, column, is_rank)
        if last is None:
            return None
        sign, limit = ("<=" if is_rank else ">="), last
        text = f"{text}: {'to' if is_rank else 'from'} {last:.6g}"
    return NearCut(
        text=text,
        column=column,
        sign=sign,
        limit=limit,
        reasons=own_reasons,
        is_size=threshold.is_size,
        item=threshold.item,
    )


def _last(state: RunState, stage: str, column: str, is_rank: bool) -> float | None:
    """Returns the value of the last row that a select keeps: its highest rank, or lowest value."""
    last = TopRows(Key(column, is_rank), 1, 0).add_all(query(state, stage, [column]), HAS_VALUE)
    return None if last.value is None else float(last.value)


MOST = 10_000  # rows; `export` writes any number
DEFAULT = 4  # columns beside the caption, unless columns are named
HIDDEN = (KEEP.name, IMAGE.name, IMAGE_BYTES.name, UID.name, TEXT.name)
Chosen = tuple[NearCut | None, bool | None, TopRows]  # a side of a threshold, or all rows


@dataclass(frozen=True, kw_only=True)
class ShowQuery:
    """A query for rows of a stage to show; `dropped` is a reason, True for any, None for rows that
    the stage keeps or was given."""

    stage: str
    where: str | None = None
    dropped: str | bool | None = None
    near_cut: bool = False
    sort: str | None = None
    is_descending: bool = False
    columns: tuple[str, ...] = ()
    most: int = 20
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row: its values by column, shortened for display."""

    uid: str
    shard: int
    position: int
    values: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Some of `rows` rows, in order. With a `cut`: those that it dropped, or those kept."""

    rows: int
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    cut: NearCut | None = None
    kept: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Show:
    """Rows of a stage; `groups` is one, or two per threshold.

    `unfinished` are stages that lack shards: the rows of those shards are left out.
    """

    run: str
    stage: str
    is_select: bool
    where: str | None
    dropped: str | bool | None
    sort: str | None
    is_descending: bool
    groups: tuple[Lines, ...]
    unfinished: tuple[Unfinished, ...]


def show(state: RunState, request: ShowQuery) -> Show:
    """Returns the rows; RecipeError if a name or the condition is wrong, or no row can match."""
    rows_stage(state.plan, request.stage)
    _check(request)
    if isinstance(request.dropped, str):
        request = replace(request, dropped=_code(state, request.stage, request.dropped))
    chosen: list[Chosen] = (
        [*_near(state, request)] if request.near_cut else [(None, None, _first(state, request))]
    )
    columns = [request.columns or _default(state, request, cut) for cut, _, _ in chosen]
    every = dict.fromkeys(name for names in columns for name in names)
    rows = query(state, request.stage, list(every))
    places = {place for _, _, top in chosen for place in top.places}
    values = values_at(rows, places, [UID.name, *every])
    return Show(
        run=str(state.run),
        stage=request.stage,
        is_select=state.plan.stages[request.stage].is_select,
        where=request.where,
        dropped=request.dropped,
        sort=request.sort,
        is_descending=request.is_descending,
        groups=tuple(
            _lines(top, values, names, cut, kept, set(request.columns))
            for names, (cut, kept, top) in zip(columns, chosen, strict=True)
        ),
        unfinished=rows.unfinished,
    )


def _check(request: ShowQuery) -> None:
    if not 1 <= request.most <= MOST:
        do = f"show 1 to {MOST:,}; `clipmill export --to csv` writes any number"
        raise RecipeError(f"{request.most:,} rows to look at", "-n", do)
    if request.near_cut and (request.sort or request.dropped):
        other = "--sort" if request.sort else "--dropped"
        do = (
            "leave one out: rows near a cut are kept and dropped ones, in the order of their values"
        )
        raise RecipeError(f"--near-cut with {other}", "the arguments", do)
    if request.is_descending and not request.sort:
        raise RecipeError("--desc without --sort", "the arguments", "add --sort COLUMN")


def _code(state: RunState, stage: str, reason: str) -> str:
    """Returns the stored form of a reason that is given in the funnel's words."""
    root = state.plan.stages[stage].root
    over = [name for name, planned in state.plan.stages.items() if planned.root == root]
    # The stage comes last: where another says a reason alike, its own code is meant.
    words = {in_words(code): code for name in (*over, stage) for code in drops(state, name)}
    return words.get(reason, reason)


def _first(state: RunState, request: ShowQuery) -> TopRows:
    """Returns the first rows by the sort column, else by hash."""
    if request.sort:
        dtype = type_at(state, *column_at(state.plan, request.stage, request.sort))
        if not is_orderable(dtype):
            raise RecipeError(
                f"'{request.sort}' holds {dtype}, which has no order",
                "--sort",
                "name a column of numbers or text",
            )
    columns = [request.sort] if request.sort else []
    rows = query(state, request.stage, columns, request.where, request.dropped)
    key = Key(request.sort, request.is_descending)
    return TopRows(key, request.most, request.seed).add_all(rows)


def _near(state: RunState, request: ShowQuery) -> Iterator[Chosen]:
    """Yields half of the rows on either side of each threshold: those dropped, and those kept."""
    for cut in cuts_of(state, request.stage):
        key, half = Key(cut.column, near=cut.limit, item=cut.item), -(-request.most // 2)
        dropped, kept = (TopRows(key, half, request.seed) for _ in range(2))
        rows = partial(query, state, request.stage, [cut.column], request.where)
        if cut.reasons:
            dropped.add_all(rows(cut.reasons), cut.beyond())
        yield cut, False, dropped
        yield cut, True, kept.add_all(rows(), HAS_VALUE)


def _default(state: RunState, request: ShowQuery, cut: NearCut | None) -> tuple[str, ...]:
    """Returns the columns that chose the rows, then the decided or written, then the caption."""
    planned = state.plan.stages[request.stage]
    has_reasons = any(state.stages[request.stage].codes)
    first = [cut.column] if cut else [request.sort] if request.sort else []
    decided: dict[str, Binding] = {}
    if isinstance(request.dropped, str):
        decided = named_in(state.plan, request.stage, request.dropped)
    elif request.dropped or (has_reasons and not planned.is_select):
        first.append(REASON.name)
    read = planned.bindings[0] if planned.is_select and planned.bindings else {}
    own = {column.name: (request.stage, column.name) for column in planned.stage.writes}
    names = dict.fromkeys(first + [_name(state, request.stage, *item) for item in decided.items()])
    for column, source in {**read, **own}.items() if cut is None else ():
        is_short = source[1] not in HIDDEN and is_orderable(state.plan.schema(*source))
        if is_short and len(names) < DEFAULT:
            names.setdefault(_name(state, request.stage, column, source))
    link = binding(state, request.stage, URL.name)
    if link and request.dropped and not planned.is_select:
        names.setdefault(_name(state, request.stage, URL.name, link))
    if caption := binding(state, request.stage, TEXT.name):
        caption_name = _name(state, request.stage, TEXT.name, caption)
        names.pop(caption_name, None)
        names[caption_name] = None  # the last column gets the remaining width
    return tuple(names)


def _name(state: RunState, stage: str, column: str, source: Binding) -> str:
    """Returns the short column name if unambiguous, else `stage.column`."""
    try:
        is_clear = column_at(state.plan, stage, column) == source
    except RecipeError:  # two stages write it
        is_clear = False
    return column if is_clear else ".".join(source)


def _lines(
    top: TopRows,
    values_by_place: Mapping[Place, Row],
    columns: Sequence[str],
    cut: NearCut | None,
    kept: bool | None,
    named: set[str],
) -> Lines:
    """Returns the rows with the named columns, and others that have a value in one of the rows."""
    rows = [
        {**values_by_place[place], SHARD.name: place[0], POSITION.name: place[1]}
        for place in top.places
    ]
    names = [n for n in columns if n in named or any(row[n] is not None for row in rows)]
    return Lines(
        rows=top.rows,
        columns=tuple(names),
        lines=tuple(
            Line(
                uid=row[UID.name].hex(),
                shard=row[SHARD.name],
                position=row[POSITION.name],
                values={name: shown(row[name]) for name in names},
            )
            for row in rows
        ),
        cut=cut,
        kept=kept,
    )
