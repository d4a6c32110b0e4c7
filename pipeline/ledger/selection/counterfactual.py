"""Evaluates counterfactuals: what a select would keep with another number as a threshold.

This module finds the threshold to vary, and reads the rows that verdicts need: all at once, or
shard by shard.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import IDENTITY, KEEP
from clipmill.pipeline.errors import RecipeError, did_you_mean
from clipmill.pipeline.ledger.rows.ahead import ahead
from clipmill.pipeline.ledger.rows.stored import stored
from clipmill.pipeline.ledger.rows.top import decided
from clipmill.pipeline.ledger.selection.groups import (
    NAMES,
    Groups,
    group_of,
    groupings,
    rows_of_groups,
)
from clipmill.pipeline.planning.planned import Binding, PlannedStage
from clipmill.pipeline.planning.remembered import StandIn
from clipmill.pipeline.planning.selects import asks_by_part, thresholds_of
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.stage import Selects, Threshold

FORM = re.compile(
    r"\s*([A-Za-z_][\w-]*(?:\.\w+)?)\s*(<=|>=|<|>|=)\s*([^:\s]+):([^:\s]+):([^:\s]+)\s*"
)
MAX_VALUES = 1000
DIGITS = 30  # before or after a number's point: polars reads 38


@dataclass(frozen=True)
class Vary:
    """A range of values for a threshold; `sign` selects one of several comparisons, `=` is any."""

    name: str
    sign: str
    values: tuple[Decimal, ...]


def parse(vary: str) -> Vary:
    """Parses `clip_score=0.10:0.40:0.02`; RecipeError if it is not a valid range."""
    where = f"--vary {vary}"
    match = FORM.fullmatch(vary)
    if not match:
        raise RecipeError(
            "it is not NAME=START:STOP:STEP", where, "write it as in clip_score=0.10:0.40:0.02"
        )
    name, sign, *texts = match.groups()
    try:
        start, stop, step = map(Decimal, texts)
    except InvalidOperation:
        raise RecipeError("a range is three numbers", where, "write START:STOP:STEP") from None
    for number in (start, stop, step):
        if not number.is_finite() or abs(number.adjusted()) > DIGITS:
            found = f"a range is finite, and of at most {DIGITS} digits"
            raise RecipeError(found, where, "write three plain numbers")
    if step <= 0 or stop < start:
        raise RecipeError("the range is empty", where, "START is at most STOP, STEP is above 0")
    count = int((stop - start) / step) + 1
    if count > MAX_VALUES:
        raise RecipeError(f"{count:,} values", where, f"take a wider STEP: at most {MAX_VALUES:,}")
    return Vary(name, sign, tuple(start + step * i for i in range(count)))


def select_stage(state: RunState, stage: str) -> PlannedStage:
    """Returns the complete stage of this name, which has thresholds; else raises RecipeError."""
    stages = state.plan.stages
    if stage not in stages:
        do = did_you_mean(stage, stages, "the recipe has")
        raise RecipeError(f"no stage '{stage}'", "--stage", do)
    if not isinstance(stages[stage].stage, Selects):
        is_away = isinstance(stages[stage].stage, StandIn)
        why = "whose code is not at hand: --stages DIR" if is_away else "which has no threshold"
        selects = [name for name, other in stages.items() if isinstance(other.stage, Selects)]
        raise RecipeError(
            f"'{stage}' is {stages[stage].uses}, {why}",
            "--stage",
            f"name a select stage; here: {', '.join(selects) or 'none'}",
        )
    if not state.stages[stage].complete:
        raise RecipeError(f"'{stage}' is not complete", str(state.run), "run the recipe first")
    return stages[stage]


def threshold_of(planned: PlannedStage, vary: Vary) -> Threshold:
    """Returns the one threshold to vary; RecipeError names those that can be varied."""
    known = thresholds_of(planned)
    named = [threshold for threshold in known if threshold.name == vary.name]
    hits = {threshold.text: threshold for threshold in named if vary.sign in ("=", threshold.sign)}
    if len(hits) == 1:
        return next(iter(hits.values()))
    if hits:
        raise RecipeError(
            f"'{vary.name}' is compared {len(hits)} times: {', '.join(hits)}",
            planned.where,
            f"name the one by its sign: {' or '.join(f'{vary.name}{t.sign}…' for t in named)}",
        )
    names = ", ".join(dict.fromkeys(threshold.name for threshold in known))
    raise RecipeError(
        f"'{planned.name}' has no threshold '{vary.name}{vary.sign.removeprefix('=')}'",
        planned.where,
        f"vary one of: {names}" if names else "no number of its settings decides by itself",
    )


# Shapes: N rows of the pool, or of a part of it.

HELD_ROWS = 1 << 21  # rows of about 170 bytes; larger pools are read shard by shard
GROUP, READ, MADE = "group ", "read ", "made "


@dataclass(frozen=True)
class Rows:
    """Rows of the pool: inputs of counterfactual verdicts, groups, and the current verdicts."""

    read: pa.Table  # uid, shard, position and columns as the stage reads them
    made: pa.Table  # columns that the stage wrote
    value: pa.ChunkedArray  # the column that the threshold compares
    groups: dict[str, NDArray[np.int8]]  # (N,) group codes, by grouping
    today: NDArray[np.bool_]  # (N,)


class Pool:
    """All rows in memory, or streamed by shard if the pool is large and the threshold allows it."""

    def __init__(self, state: RunState, planned: PlannedStage, threshold: Threshold) -> None:
        shards = state.stages[planned.root].shards
        if not shards:
            raise RecipeError("the pool has no rows", str(state.run), "check the pool's path")
        self.rows = shards.rows
        self.is_held = self.rows <= HELD_ROWS or not asks_by_part(planned, threshold)
        self._state, self._root, self._threshold = state, planned.root, threshold
        bindings = planned.bindings[0]
        self._inputs = inputs_of(planned, threshold)
        self._grouped = {
            f"{GROUP}{name}": where for name, where in groupings(state, planned.name).items()
        }
        value = bindings.get(threshold.column, (planned.name, threshold.column))
        self._bound = {**self._inputs, **self._grouped, "value": value}
        self._held = list(self._tables(self._bound)) if self.is_held else None
        self.groups = self._largest_groups()

    def __iter__(self) -> Iterator[Rows]:
        """Yields every row once, by part."""
        if self._held is None:
            yield from map(self._as_rows, self._tables(self._bound))
        else:
            yield self._as_rows(pa.concat_tables(self._held).unify_dictionaries())

    def parts(self) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Yields the inputs of verdicts: columns that the stage read, and columns that it wrote."""
        return map(split_inputs, self._tables(self._inputs))

    def _tables(self, bound: Mapping[str, Binding]) -> Iterator[pa.Table]:
        shards = stored(self._state, self._root, bound)

        def read(shard: int) -> pa.Table:
            table = shards.table(shard)
            for name in bound.keys() & self._grouped.keys():
                codes = group_of(name.removeprefix(GROUP), table[name])  # a URL's host is shorter
                table = table.set_column(table.column_names.index(name), name, codes)
            return table

        return ahead(self._state.run, read, range(len(shards)))

    def _largest_groups(self) -> dict[str, Groups]:
        """Returns the groups that are counted separately, by grouping.

        Error: past NAMES names, the rarer half is forgotten as the pool is read. A forgotten name
        that comes again is counted from there on.
        """
        rows: dict[str, Counter[str]] = {name: Counter() for name in self._grouped}
        tables = self._tables(self._grouped) if self._held is None else iter(self._held)
        for table in tables if rows else ():
            for name, counted in list(rows.items()):
                counted.update(rows_of_groups(table[name]))
                if len(counted) > NAMES:
                    rows[name] = Counter(dict(counted.most_common(NAMES // 2)))
        return {name.removeprefix(GROUP): Groups.largest(counts) for name, counts in rows.items()}

    def _as_rows(self, table: pa.Table) -> Rows:
        read, made = split_inputs(table)
        value = decided(pl.Series(table["value"]), self._threshold.item)
        return Rows(
            read=read,
            made=made,
            value=pa.chunked_array([value.to_arrow()]),
            groups={name: g.codes(table[f"{GROUP}{name}"]) for name, g in self.groups.items()},
            today=made[KEEP.name].to_numpy(),
        )


def inputs_of(planned: PlannedStage, threshold: Threshold) -> dict[str, Binding]:
    """Returns the inputs of verdicts: columns that the stage read, and columns that it wrote."""
    bindings, made = planned.bindings[0], (KEEP.name, *threshold.made)
    read = {f"{READ}{name}": bindings[name] for name in threshold.reads if name in bindings}
    return read | {f"{MADE}{name}": (planned.name, name) for name in made}


def split_inputs(table: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Splits a table into the columns that `verdicts` reads, with the rows' identity, and those
    that the stage wrote."""
    columns = dict(zip(table.column_names, table.columns, strict=True))
    place = {name: values for name, values in columns.items() if name in IDENTITY}
    read, made = (
        {name.removeprefix(kind): v for name, v in columns.items() if name.startswith(kind)}
        for kind in (READ, MADE)
    )
    return pa.table(place | read), pa.table(made)
