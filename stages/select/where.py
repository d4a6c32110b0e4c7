"""Which rows stay: a condition on stored columns, then the best of those that meet it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from metadata.schema import IMAGE_BYTES, KEEP, POSITION, REASON, SHARD, UID
from pipeline.dataset import Context, Inputs, Shards, State
from pipeline.errors import StageError
from pipeline.stage import DatasetStage
from stages.select import _cut as cut
from stages.select import _sql as sql


@dataclass(frozen=True, kw_only=True)
class Top:
    """The largest values of one column: a share of the rows, rounded down, or a number of them.

    `passing` takes the share of the rows that `where` keeps; `pool` fixes the cut on all rows
    first, as DataComp does. Rows without a value count for the share and are never kept. Ties go
    to the smaller uid; with `datacomp_compat` the cut is the (n+1)-th largest value and all its
    ties stay, a cut that lands on rows without a value keeps nothing, and fraction 1 keeps all.
    """

    column: str  # `name` or `stage.name`
    fraction: float | None = None
    rows: int | None = None
    over: Literal["passing", "pool"] = "passing"
    datacomp_compat: bool = False

    def __post_init__(self) -> None:
        if (self.fraction is None) == (self.rows is None):
            raise ValueError("top: give `fraction` or `rows`, one of the two")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ValueError(f"top: fraction is {self.fraction}; it lies above 0 and up to 1")
        if self.rows is not None and self.rows < 1:
            raise ValueError(f"top: rows is {self.rows}; at least 1 is needed")
        if self.datacomp_compat and self.fraction is None:
            raise ValueError("top: datacomp_compat is a rule about `fraction`")

    def first_cut(self, pool: int, ranked: int) -> tuple[cut.Cut | None, int]:
        """The cut where it is known without looking at a value; else None and n of the n-th."""
        nth = self.rows or int(pool * (self.fraction or 0))
        if self.datacomp_compat and nth < pool:
            return (cut.NOTHING, 0) if nth >= ranked else (None, nth + 1)
        if nth == 0:
            return cut.NOTHING, 0
        return (cut.EVERYTHING, 0) if nth >= ranked else (None, nth)


@dataclass(frozen=True, kw_only=True)
class Where(DatasetStage):
    """Whether a row stays, never null; else, as the reason, the first rule that it breaks.

    A false condition names its first false conjunct; one that is null, the first column without
    a value in its first null conjunct (`undefined:COLUMN`). Before that, a row stays out that an
    earlier select dropped, or whose image failed.

    Source: the cuts by fraction are DataComp's (Gadre et al. 2023), which keeps one row more.
    Error: none; comparisons with a float32 column are in float32, and the cut is exact.
    """

    version = 1
    determinism = "exact"
    optional_reads = (KEEP, IMAGE_BYTES)
    writes = (KEEP,)

    where: str | None = None  # row-wise SQL
    top: Top | None = None

    def __post_init__(self) -> None:
        if not self.where and not self.top:
            raise ValueError("select.where needs `where`, `top` or both")
        if self.where:
            sql.conjuncts(self.where)  # raises ValueError

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]  # by settings
        names = [name for conjunct in self.conjuncts for name in conjunct.columns]
        return tuple(dict.fromkeys([*names, *([self.top.column] if self.top else [])]))

    @property
    def reasons(self) -> tuple[str, ...]:  # type: ignore[override]  # by settings
        """Every rule, the first that a row breaks being its reason."""
        rules = ["dropped_before", f"undefined:{IMAGE_BYTES.name}"]
        rules += [conjunct.text for conjunct in self.conjuncts]
        for conjunct in self.conjuncts:
            rules += [f"undefined:{name}" for name in conjunct.columns]
        rules += ["undefined"] if self.where else []
        if self.top:
            rules += [f"undefined:{self.top.column}", f"top:{self.top.column}"]
        return tuple(dict.fromkeys(rules))

    @property
    def conjuncts(self) -> tuple[sql.Conjunct, ...]:
        return sql.conjuncts(self.where) if self.where else ()

    def check(self, types: Mapping[str, pa.DataType]) -> None:
        """Whether each condition can be asked of such columns, and `top` can rank by its own."""
        no_row = pa.Table.from_batches([], pa.schema(dict(types)))  # empty_table imports pandas
        for conjunct in self.conjuncts:
            sql.check(conjunct, no_row)
        if self.top and not is_number(types[self.top.column]):
            raise StageError(
                found=f"column '{self.top.column}' holds {types[self.top.column]}",
                where="key `top.column`",
                do="name a column of numbers",
            )

    def frame(self, rows: pa.Table) -> pl.DataFrame:
        """The columns that the conditions read, as they read them."""
        return sql.as_frame(rows.select(list(dict.fromkeys((UID.name, *self.reads)))))

    def run(self, inputs: Inputs, ctx: Context) -> None:
        assert inputs.rows is not None  # the plan gives rows to a stage that takes them
        rows = ctx.map_shards(partial(judge, stage=self), inputs.rows)
        if self.top and len(rows):
            best = partial(keep_best, top=self.top, lowest=find_cut(self.top, rows, ctx))
            rows = ctx.map_shards(best, rows)
        ctx.restore(rows)


def find_cut(top: Top, rows: Shards, ctx: Context) -> cut.Cut:
    """One survey of all rows a digit, until the rows at or above the cut are those wanted."""
    found, nth = cut.EVERYTHING, 0
    while True:
        seen = ctx.reduce(partial(survey, over=top.over, begin=found), rows, merge)
        if not nth:
            known, nth = top.first_cut(*seen["rows"].tolist())
            if known is not None:
                return known
        found, nth = cut.extend(found, nth, seen["by_digit"])
        ties_stay = top.datacomp_compat and len(found) == seen["value_digits"]
        if ties_stay or nth == seen["by_digit"][found[-1]]:
            return found


def judge(rows: pa.Table, *, stage: Where) -> pa.Table:
    """keep and reason of every row by `where`, and the value that `top` ranks by."""
    frame = stage.frame(rows)
    truths = [(conjunct, sql.truth(conjunct, frame)) for conjunct in stage.conjuncts]
    broken = [(np.zeros(len(rows), bool), "dropped_before")]
    if KEEP.name in rows.column_names:
        broken += [(~rows[KEEP.name].fill_null(False).to_numpy(), "dropped_before")]
    if IMAGE_BYTES.name in rows.column_names:
        broken += [(rows[IMAGE_BYTES.name].is_null().to_numpy(), f"undefined:{IMAGE_BYTES.name}")]
    broken += [((~truth).fill_null(False).to_numpy(), rule.text) for rule, truth in truths]
    for rule, truth in truths:
        null = truth.is_null()
        for name in rule.columns:
            broken += [((null & frame[name].is_null()).to_numpy(), f"undefined:{name}")]
        broken += [(null.to_numpy(), "undefined")]  # though every column has a value
    masks, rules = zip(*broken, strict=True)
    code_N = np.select(masks, [stage.reasons.index(rule) for rule in rules], default=-1)
    code = pa.array(code_N.astype(np.int32), mask=code_N < 0)
    judged = rows.select([UID.name, SHARD.name, POSITION.name])
    judged = judged.append_column(KEEP.name, pa.array(code_N < 0))
    judged = judged.append_column(REASON.name, pa.DictionaryArray.from_arrays(code, stage.reasons))
    if stage.top:
        judged = judged.append_column("value", rankable(rows[stage.top.column]))
    return judged


def rankable(value: pa.ChunkedArray) -> pa.ChunkedArray:
    """Numbers, with null for NaN."""
    if pa.types.is_float16(value.type):
        value = value.cast(pa.float32())
    if pa.types.is_floating(value.type):
        value = pc.if_else(pc.is_nan(value), None, value)
    return value


def is_number(dtype: pa.DataType) -> bool:
    return pa.types.is_integer(dtype) or pa.types.is_floating(dtype)


def survey(rows: pa.Table, *, over: str, begin: cut.Cut) -> State:
    """Rows of the pool and those with a value, and how the ranks that begin so go on."""
    pool = rows if over == "pool" else rows.filter(rows[KEEP.name])
    ranked = pool.filter(pool["value"].is_valid())
    value_ND = cut.value_digits(ranked["value"])
    return {
        "rows": np.array([len(pool), len(ranked)]),
        "by_digit": cut.next_digit(np.hstack([value_ND, cut.tie_digits(ranked)]), begin),
        "value_digits": np.array(value_ND.shape[1]),
    }


def merge(one: State, other: State) -> State:
    return {
        "rows": np.add(one["rows"], other["rows"]),
        "by_digit": np.add(one["by_digit"], other["by_digit"]),
        "value_digits": one["value_digits"],  # the type of a column is that of its pool
    }


def keep_best(rows: pa.Table, *, top: Top, lowest: cut.Cut) -> pa.Table:
    """keep and reason of every row, now by its value too."""
    undefined = rows["value"].is_null()
    rank_ND = np.hstack([cut.value_digits(rows["value"]), cut.tie_digits(rows)])
    too_low = pa.array(~cut.at_or_above(rank_ND, lowest))
    by_value = pc.case_when(
        pc.make_struct(undefined, too_low), f"undefined:{top.column}", f"top:{top.column}"
    )
    reason = pc.coalesce(rows[REASON.name].cast(pa.string()), by_value)
    judged = rows.select([UID.name, SHARD.name, POSITION.name])
    judged = judged.append_column(KEEP.name, reason.is_null())
    return judged.append_column(REASON.name, reason.dictionary_encode())
