"""Samples rows at random: a share, a number, an equal share of every value, or a cap per value."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.hosts import host_of
from clipmill.metadata.schema import IDENTITY, IMAGE_BYTES, KEEP, REASON, UID, URL, Column
from clipmill.metadata.uid import coin
from clipmill.pipeline.dataset import Context, Inputs
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.stage import DatasetStage, NonEmpty, OneUp, Parts, Share, Threshold, Verdicts
from clipmill.stages.ops.tables.rows import DROPPED
from clipmill.stages.select import _cut as cut
from clipmill.stages.select._groups import OFFSET, PLACE, SIZE, VALUE, placed
from clipmill.stages.select._judged import NO_IMAGE, first_of, judged_rows, left_out
from clipmill.stages.select._least import at_each, is_least, least_of_parts, search, verdict

# Shapes: N rows.

SAMPLE_RANK = Column(
    "sample_rank",
    pa.float64(),
    "0 to 1; rows",
    "Kept where `fraction` or `at_most` is above; with `rows` the least stay.",
)
DOMAIN = "domain"
BELOW_1 = np.nextafter(1.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Sample(DatasetStage):
    """Random keep decision of each row, and its `sample_rank`, null for rows outside the draw.

    Each row has a coin, a hash of seed, stage and uid in [0, 1): `fraction` keeps rows whose coin
    is below it, `rows` exactly that many rows of the least coins (all, if there are no more). Rows
    that an earlier select dropped, or whose image failed, are outside the draw.

    `by` gives every value of a column the same share: row r of n of a value, by coin and from 0,
    has rank (r + u) / n, u a coin of the value. `fraction` then takes its share of each value,
    rounded up or down at random, with every row equally likely; `rows` takes the least ranks. `per`
    and `at_most` cap each value at its least coins; the rank is the row's place, from 0. A larger
    sample of the same stage contains the smaller one.

    Source: `per: cluster_id, at_most: 35` is RealSyn's balance (Gu et al. 2025).
    Departs: largest-remainder rounding gives counts as near, and samples that do not nest.
    Error: none; `fraction` alone has the binomial's spread. Rows of one uid share their coin.
    Example: {after: [ingest.image_folder], rows: 100000}
    """

    fraction: Share | None = None  # share of the rows to keep
    rows: OneUp | None = None  # or: number of rows to keep
    at_most: OneUp | None = None  # or: cap on the rows of each value of `per`; RealSyn: 20, 35, 180
    per: NonEmpty | None = None  # column whose values are capped; `domain` is the host of `url`
    by: NonEmpty | None = None  # column whose values keep equal shares; `domain` as in `per`

    version = 1
    determinism = "exact"
    optional_reads = (KEEP, IMAGE_BYTES)
    writes = (KEEP, SAMPLE_RANK)

    def __post_init__(self) -> None:
        names = ("fraction", "rows", "at_most")
        sizes = [name for name in names if getattr(self, name) is not None]
        if len(sizes) != 1:
            found = f"{' and '.join(sizes)} say" if sizes else "nothing says"
            found += " how much stays"
            do = "give one of `fraction`, `rows` and `at_most`; for two, one stage after the other"
            raise RecipeError(found, "its settings", do)
        if (self.per is None) != (self.at_most is None):
            found = f"`{'at_most' if self.per is None else 'per'}` stands alone"
            do = "write both: {per: cluster_id, at_most: 35}; a share of each value is `by`"
            raise RecipeError(found, "its settings", do)
        if self.per and self.by:
            do = "cap with one stage, and sample what it keeps with a second"
            raise RecipeError("`per` and `by` are both given", "key `by`", do)

    @property
    def column(self) -> str | None:
        """Returns the column that groups rows, by the name under which it is read."""
        named = self.per or self.by
        return URL.name if named == DOMAIN else named

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.column,) if self.column else ()

    @property
    def reasons(self) -> tuple[str, ...]:
        undefined = [f"undefined:{self.per or self.by}"] if self.column else []
        return (DROPPED, NO_IMAGE, *undefined, "sampled_out")

    def check(self, types: Mapping[str, pa.DataType]) -> None:
        """Checks that rows can be grouped by a column of this type; raises StageError."""
        if self.column and not can_group(types[self.column]):
            raise StageError(
                found=f"column '{self.column}' holds {types[self.column]}",
                where=f"key `{'per' if self.per else 'by'}`",
                do="name a column of text, numbers or truth values",
            )

    def thresholds(self) -> tuple[Threshold, ...]:
        """Returns the one size: a bound on the rank, except for `rows`."""
        names = ("fraction", "rows", "at_most")
        ((name, value),) = ((n, v) for n in names if (v := getattr(self, n)) is not None)
        return (
            Threshold(
                name=name,
                column=SAMPLE_RANK.name,
                sign="<",
                value=float(value),
                text=f"{name} = {value:g}" if name == "fraction" else f"{name} = {value}",
                made=(SAMPLE_RANK.name,),
                is_size=name == "rows",
                by_row=name != "rows",
            ),
        )

    def verdicts(
        self, threshold: Threshold, values: Sequence[Decimal], rows: pa.Table, made: pa.Table
    ) -> Iterator[Verdicts]:
        """Returns the verdicts at each size, from the stored ranks."""
        self._check(threshold, values)
        rank = made[SAMPLE_RANK.name]
        if threshold.name == "rows":
            kept = at_each([int(value) for value in values], rows, rank)
        else:
            rank_N = rank.fill_null(np.inf).to_numpy()
            kept = (rank_N < float(value) for value in values)
        return map(partial(verdict, threshold), values, kept)

    def surveyed(
        self, threshold: Threshold, values: Sequence[Decimal], parts: Parts
    ) -> Callable[[pa.Table, pa.Table], Iterator[Verdicts]]:
        """Returns a function that yields a part's verdicts at each `rows`, over all parts."""
        self._check(threshold, values)
        sizes = [partial(min, int(value)) for value in values]
        return least_of_parts(threshold, values, sizes, parts)

    def _check(self, threshold: Threshold, values: Sequence[Decimal]) -> None:
        """Raises ValueError for a size out of range."""
        name = threshold.name
        for value in values:
            if name == "fraction" and not 0 < value <= 1:
                raise ValueError(f"fraction is {value}; it lies above 0, up to 1")
            if name != "fraction" and (value < 1 or value != int(value)):
                raise ValueError(f"{name} is {value}; it is a whole number, 1 or more")

    def explain(self, reason: str, made: Mapping[str, Any]) -> str:
        """Returns the rank that decided, for a row in the draw; else ""."""
        rank = made[SAMPLE_RANK.name]
        if rank is None or reason not in ("", "sampled_out"):
            return ""
        if self.at_most:
            number = f"number {rank + 1:,.0f} of its {self.per}"
            return f"by its coin it is {number}, and {self.at_most:,} stay"
        if not reason:
            return ""
        if self.rows:
            return f"its rank is {rank:.6g}, and it is not among the least {self.rows:,}"
        return f"its rank is {rank:.6g}, and fraction is {self.fraction:g}"

    def run(self, inputs: Inputs, ctx: Context) -> None:
        rows = ctx.map_shards(partial(self.drawn, ctx.worker.seed, ctx.worker.stage), inputs.rows)
        lowest = cut.EVERYTHING
        if len(rows):
            if self.column:
                rows = ctx.map_shards(self.ranked, placed(rows, ctx))
            if self.rows:
                lowest = cut.solve(search(SAMPLE_RANK.name, partial(min, self.rows)), rows, ctx)
        ctx.restore(ctx.map_shards(partial(self.judged, lowest), rows))

    def drawn(self, seed: int, stage: str, rows: pa.Table) -> pa.Table:
        """Returns identity, the reason to stay outside the draw, and the coin or group value."""
        masks = left_out(rows)
        if self.column:
            value = host_of(rows[URL.name]) if DOMAIN in (self.per, self.by) else rows[self.column]
            value = groupable(value)
            masks[f"undefined:{self.per or self.by}"] = value.is_null()
        reason = first_of(masks)
        if self.column:
            name, drawn = VALUE, value
        else:
            coin_N = coin(rows[UID.name], seed=seed, stage=stage, purpose="sample")
            name, drawn = SAMPLE_RANK.name, pa.array(coin_N)
        drawn = pc.if_else(reason.is_null(), drawn, None)
        return rows.select(IDENTITY).append_column(REASON.name, reason).append_column(name, drawn)

    def ranked(self, rows: pa.Table) -> pa.Table:
        """Returns the rows with their rank, by their place among the rows of their value."""
        rank = rows[PLACE].cast(pa.float64())
        if self.by:
            of_value = pc.divide(pc.add(rank, rows[OFFSET]), rows[SIZE].cast(pa.float64()))
            rank = pc.min_element_wise(of_value, BELOW_1, skip_nulls=False)
        return rows.select([*IDENTITY, REASON.name]).append_column(SAMPLE_RANK.name, rank)

    def judged(self, lowest: cut.Cut, rows: pa.Table) -> pa.Table:
        """Returns keep, rank and reason of every row."""
        rank = rows[SAMPLE_RANK.name]
        if self.rows:
            stays = pa.array(is_least(rows, SAMPLE_RANK.name, lowest))
        else:
            stays = pc.less(rank, float(self.fraction or self.at_most or 0)).fill_null(False)
        reason = pc.coalesce(rows[REASON.name], pc.if_else(stays, None, "sampled_out"))
        return judged_rows(rows, reason, {SAMPLE_RANK.name: rank})


def can_group(dtype: pa.DataType) -> bool:
    """Returns whether values of this type can be grouped: no lists, no bytes of varying length."""
    if pa.types.is_dictionary(dtype):
        dtype = dtype.value_type
    kinds = (
        *(pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_floating),
        *(pa.types.is_boolean, pa.types.is_fixed_size_binary, pa.types.is_temporal),
    )
    return any(is_kind(dtype) for is_kind in kinds)


def groupable(value: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns the values with equal ones made identical: NaN is null and -0.0 is 0.0."""
    if pa.types.is_dictionary(value.type):
        value = value.cast(value.type.value_type)
    if pa.types.is_float16(value.type):
        value = value.cast(pa.float32())
    if pa.types.is_floating(value.type):
        value = pc.add(pc.if_else(pc.is_nan(value), None, value), pa.scalar(0, value.type))
    return value
