"""Keeps the rows that meet a condition on stored columns, then the top-k of those."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.schema import IMAGE_BYTES, KEEP, UID
from clipmill.pipeline.dataset import Context, Inputs
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.stage import DatasetStage, NonEmpty, Parts, Threshold, Verdicts, need_types
from clipmill.stages.ops.tables.rows import DROPPED
from clipmill.stages.select import _cut as cut
from clipmill.stages.select import _sql as sql
from clipmill.stages.select import _verdicts
from clipmill.stages.select._judged import NO_IMAGE, judged_rows, left_out
from clipmill.stages.select._top import Top, keep_best, rankable, search


@dataclass(frozen=True, kw_only=True)
class Where(DatasetStage):
    """Keep decision of each row, never null; a dropped row's reason is the first rule it breaks.

    A false condition names its first false conjunct; a null one names the first column without a
    value in its first null conjunct (`undefined:COLUMN`). Rows that an earlier select dropped, or
    whose image failed, are dropped before that.

    Source: the cuts by fraction are DataComp's (Gadre et al. 2023), which keeps one row more.
    Error: none; comparisons with a float32 column are in float32, and the cut is exact.
    Example: {after: [ingest.image_folder, embed.clip, score.clip_score], where: clip_score >= 0.28}
    """

    version = 1
    determinism = "exact"
    asked_in = "where"
    at_once = 8
    optional_reads = (KEEP, IMAGE_BYTES)
    writes = (KEEP,)

    # SQL condition on columns: min_side >= 200 AND language = 'en'
    where: NonEmpty | None = None
    top: Top | None = None  # top-k: keep only the largest values of a column

    def __post_init__(self) -> None:
        if not self.where and not self.top:
            do = "write `where: score >= 0.3`, `top: {column: score, rows: 1000}`, or both"
            raise RecipeError("select.where has no rule", "its settings", do)
        if self.where:
            sql.conjuncts(self.where)  # raises RecipeError if it is not valid

    @property
    def reads(self) -> tuple[str, ...]:
        names = [name for conjunct in self.conjuncts for name in conjunct.columns]
        return tuple(dict.fromkeys([*names, *([self.top.column] if self.top else [])]))

    @property
    def reasons(self) -> tuple[str, ...]:
        """Returns every rule's reason, in order of precedence."""
        rules = [DROPPED, NO_IMAGE]
        rules += [conjunct.text for conjunct in self.conjuncts]
        for conjunct in self.conjuncts:
            rules += [f"undefined:{name}" for name in conjunct.columns]
        rules += ["undefined"] if self.where else []
        if self.top:
            rules += [f"undefined:{self.top.column}", f"top:{self.top.column}"]
        return tuple(dict.fromkeys(rules))

    @property
    def learns(self) -> str | None:
        return "" if self.top else None

    @property
    def conjuncts(self) -> tuple[sql.Conjunct, ...]:
        return sql.conjuncts(self.where) if self.where else ()

    def check(self, types: Mapping[str, pa.DataType]) -> None:
        """Checks that the conditions and `top` can be evaluated on columns of these types."""
        no_row = pa.Table.from_batches([], pa.schema(dict(types)))  # empty_table imports pandas
        for conjunct in self.conjuncts:
            sql.check(conjunct, no_row)
        if self.top:
            need_types(types, [self.top.column], "key `top.column`", "name a column of numbers")

    def hint(self, column: str, writers: tuple[str, ...] = ()) -> str:
        """Returns advice on a column: quotes for a text, `any` or `all` for captions' fields."""
        if sql.is_field(column):
            return (
                f"a field of captions is asked of one or of all: any({column} …), all({column} …)"
            )
        if not writers and any(sql.compared_with(conjunct, column) for conjunct in self.conjuncts):
            return f"did you mean '{column}' in single quotes? A bare word is a column"
        return ""

    def thresholds(self) -> tuple[Threshold, ...]:
        """Returns the numbers that `where` compares columns with, then the size of `top`."""
        return (
            *_verdicts.comparisons(self.conjuncts, self.verdict_columns, by_row=self.top is None),
            *_verdicts.sizes(self.top, self.verdict_columns),
        )

    def verdicts(
        self, threshold: Threshold, values: Sequence[Decimal], rows: pa.Table, made: pa.Table
    ) -> Iterator[Verdicts]:
        """Yields the verdicts with each value in the threshold's place; ValueError if invalid."""
        return map(self.varying(threshold, rows, made), values)

    def varying(
        self, threshold: Threshold, rows: pa.Table, made: pa.Table
    ) -> Callable[[Decimal], Verdicts]:
        """Returns a function from a value to its verdicts; other conditions are evaluated once."""
        return self.rules(rows).varying(threshold)

    def surveyed(
        self, threshold: Threshold, values: Sequence[Decimal], parts: Parts
    ) -> Callable[[pa.Table, pa.Table], Iterator[Verdicts]]:
        """Returns a function that yields a part's verdicts at each value; `top` ranks all parts."""
        assert self.top is not None  # without it a threshold is `by_row`
        return _verdicts.surveyed(self.rules, self.top, threshold, values, parts)

    def settled(self, threshold: Threshold, value: Decimal) -> tuple[str, str]:
        """Returns the setting's name and new text: `where` with another number, or a size."""
        if isinstance(threshold, _verdicts.Comparison):
            return "where", _verdicts.with_number(self.conjuncts, threshold, value)
        return threshold.name, f"{value:f}"

    def explain(self, reason: str, made: Mapping[str, Any]) -> str:
        """Returns how many rows `top` keeps, for a row that is not among them; else ""."""
        if self.top is None or reason != f"top:{self.top.column}":
            return ""
        among = {"passing": "of the rows that pass", "pool": "of the pool"}[self.top.over]
        return f"it is not among the {self.top.size} {among}"

    @property
    def verdict_columns(self) -> tuple[str, ...]:
        """Returns the columns that verdicts are computed from."""
        return tuple(dict.fromkeys((*self.reads, KEEP.name, IMAGE_BYTES.name)))

    def rules(self, rows: pa.Table) -> _verdicts.Rules:
        return _verdicts.Rules(self.conjuncts, self.top, rows, self.frame(rows))

    def frame(self, rows: pa.Table) -> pl.DataFrame:
        """Returns the columns that the conditions read, as a polars frame."""
        return sql.as_frame(rows.select(self.reads or [UID.name]))

    def meeting(self, rows: pa.Table) -> NDArray[np.bool_]:
        """Returns (N,) whether each row meets `where`; a null result counts as not met."""
        frame = sql.as_frame(rows)
        truths = [sql.truth(conjunct, frame) for conjunct in self.conjuncts]
        return np.logical_and.reduce([truth.fill_null(False).to_numpy() for truth in truths])

    def run(self, inputs: Inputs, ctx: Context) -> None:
        rows = ctx.map_shards(partial(judge, stage=self), inputs.rows)
        if self.top and len(rows):
            rows = ctx.keep_local(rows)  # judged once, then read by every pass
            best = partial(keep_best, top=self.top, lowest=cut.solve(search(self.top), rows, ctx))
            rows = ctx.map_shards(best, rows)
        ctx.restore(rows)


def judge(rows: pa.Table, *, stage: Where) -> pa.Table:
    """Returns keep and reason of every row by `where`, and the value that `top` ranks by."""
    frame = stage.frame(rows)
    truths = [(conjunct, sql.truth(conjunct, frame).to_arrow()) for conjunct in stage.conjuncts]
    broken = [*left_out(rows).items()]
    broken += [(rule.text, pc.invert(truth.fill_null(True))) for rule, truth in truths]
    for rule, truth in truths:
        if truth.null_count:
            for name in rule.columns:
                lacks = pc.and_(truth.is_null(), frame[name].is_null().to_arrow())
                broken.append((f"undefined:{name}", lacks))
            broken.append(("undefined", truth.is_null()))  # although every column has a value
    rules, masks = zip(*broken, strict=True)
    reason = pc.case_when(pc.make_struct(*masks), *rules)
    value = {"value": rankable(rows[stage.top.column])} if stage.top else {}
    return judged_rows(rows, reason, value)
