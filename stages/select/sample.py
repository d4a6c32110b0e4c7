"""Samples rows at random: a share, a number, an equal share of every value, or a cap per value.

A value may have more rows than a machine holds (`en` in a billion), and there may be more values
than rows in a partition. Rows of a rare value meet in one partition. A frequent value is cut into
slices, each a range of the coins that rank its rows; a slice's places begin where those of the
lower slices end. Memory is bounded by a partition, and places depend on the rows alone.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.hosts import host_of
from clipmill.metadata.schema import IDENTITY, IMAGE_BYTES, KEEP, REASON, UID, URL, Column
from clipmill.metadata.uid import coin, coin_hash
from clipmill.pipeline.dataset import Context, Inputs, Shards, State
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.stage import DatasetStage, NonEmpty, OneUp, Parts, Share, Threshold, Verdicts
from clipmill.stages.ops.tables.rows import DROPPED, added, in_order, joined
from clipmill.stages.select import _cut as cut
from clipmill.stages.select._judged import (
    NO_IMAGE,
    first_of,
    judged_rows,
    left_out,
    the_size,
)
from clipmill.stages.select._least import at_each, is_least, least_of_parts, search, verdict

# Shapes: N rows, B buckets, G slices of values in a partition; of the pool, V frequent values and
# M slices of them.

SAMPLE_RANK = Column(
    "sample_rank",
    pa.float64(),
    "0 to 1; rows",
    "Kept where `fraction` or `at_most` is above; with `rows` the least stay.",
)
DOMAIN = "domain"
BELOW_1 = np.nextafter(1.0, 0.0)
# Values that can be grouped: no lists, no bytes of varying length.
GROUPED = (
    *(pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_floating),
    *(pa.types.is_boolean, pa.types.is_fixed_size_binary, pa.types.is_temporal),
)


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
        self.wanted()
        if (self.per is None) != (self.at_most is None):
            found = f"`{'at_most' if self.per is None else 'per'}` stands alone"
            do = "write both: {per: cluster_id, at_most: 35}; a share of each value is `by`"
            raise RecipeError(found, "its settings", do)
        if self.per and self.by:
            do = "cap with one stage, and sample what it keeps with a second"
            raise RecipeError("`per` and `by` are both given", "key `by`", do)

    def wanted(self) -> tuple[str, float]:
        """Returns name and value of the size; RecipeError unless one is given."""
        do = "give one of `fraction`, `rows` and `at_most`; for two, one stage after the other"
        return the_size(self, ("fraction", "rows", "at_most"), do)

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
        if self.column:
            dtype = types[self.column]
            plain = dtype.value_type if pa.types.is_dictionary(dtype) else dtype
            if not any(is_kind(plain) for is_kind in GROUPED):
                raise StageError(
                    found=f"column '{self.column}' holds {dtype}",
                    where=f"key `{'per' if self.per else 'by'}`",
                    do="name a column of text, numbers or truth values",
                )

    def thresholds(self) -> tuple[Threshold, ...]:
        """Returns the one size: a bound on the rank, except for `rows`."""
        name, value = self.wanted()
        text = f"{name} = {value:g}" if name == "fraction" else f"{name} = {value}"
        return (
            Threshold.own(name, SAMPLE_RANK.name, "<", float(value), text, is_size=name == "rows"),
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
            name, drawn = VALUE, groupable(value)
            masks[f"undefined:{self.per or self.by}"] = drawn.is_null()
        else:
            coin_N = coin(rows[UID.name], seed=seed, stage=stage, purpose="sample")
            name, drawn = SAMPLE_RANK.name, pa.array(coin_N)
        reason = first_of(masks)
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


def groupable(value: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns the values with equal ones made identical: NaN is null and -0.0 is 0.0.

    Times become whole numbers: Arrow can make no empty dictionary of times.
    """
    if pa.types.is_dictionary(value.type):
        value = value.cast(value.type.value_type)
    if pa.types.is_temporal(value.type):
        value = value.cast(f"int{value.type.bit_width}")
    if pa.types.is_float16(value.type):
        value = value.cast(pa.float32())
    if pa.types.is_floating(value.type):
        value = pc.add(pc.if_else(pc.is_nan(value), None, value), pa.scalar(0, value.type))
    return value


BUCKETS = 1 << 16  # hash buckets in which values are counted
SLICE_ROWS = 1 << 16  # a bucket of more rows is sliced
VALUE = "value"  # the value that groups rows; null for rows in no group
PLACE = "place"  # among the rows of its value, 0 up by coin; null without a value
SIZE = "size"  # rows of its value
OFFSET = "offset"  # a coin of its value, in [0, 1)
Known = dict[bytes, tuple[int, int, float]]  # of a slice: rows before it, its value's, its offset


@dataclass(frozen=True, kw_only=True)
class Slices:
    """The number of slices of each bucket's rows, and the coins that cut them."""

    seed: int
    stage: str
    count: NDArray[np.uint64]  # (BUCKETS,)

    def bits(self, uid: pa.ChunkedArray) -> NDArray[np.uint64]:
        """Returns (N,) the coins that rank rows of one value."""
        return coin_hash(uid, seed=self.seed, stage=self.stage, purpose="place")


def placed(rows: Shards, ctx: Context) -> Shards:
    """Adds PLACE, SIZE and OFFSET to the rows, in partitions; drops VALUE."""
    rows_B = np.asarray(ctx.reduce(rows_by_bucket, rows, added)["rows"], np.int64)
    count_B = (-(-rows_B // SLICE_ROWS)).astype(np.uint64)
    slices = Slices(seed=ctx.worker.seed, stage=ctx.worker.stage, count=count_B)
    met = ctx.shuffle(ctx.map_shards(partial(with_unit, slices), rows), "unit")
    known: Known = {}
    if (count_B > 1).any():
        known = known_slices(ctx.reduce(partial(slices_of, slices), met, joined))
    return ctx.map_shards(partial(with_place, slices, known), met)


def rows_by_bucket(rows: pa.Table) -> State:
    values = rows[VALUE].drop_null()
    return {"rows": np.bincount(bucket_of(values), minlength=BUCKETS)}


def bucket_of(values: pa.ChunkedArray) -> NDArray[np.int64]:
    """Returns (N,) the bucket of each value; results do not depend on the choice."""
    import polars as pl  # imported late: a plan does not need it

    hashed = pl.DataFrame(pa.table({VALUE: values})).to_series().hash(seed=1)
    return (hashed.to_numpy() % np.uint64(BUCKETS)).astype(np.int64)


def with_unit(slices: Slices, rows: pa.Table) -> pa.Table:
    """Adds the bucket and slice in which rows meet; rows without a value are spread."""
    bits_N = slices.bits(rows[UID.name])
    bucket_N = bucket_of(rows[VALUE])
    slice_N = (bits_N >> np.uint64(32)) * slices.count[bucket_N] >> np.uint64(32)
    unit_N = slice_N.astype(np.int64) * BUCKETS + bucket_N
    has_none_N = rows[VALUE].is_null().to_numpy()
    spread_N = -1 - (bits_N >> np.uint64(44)).astype(np.int64)
    return rows.append_column("unit", pa.array(np.where(has_none_N, spread_N, unit_N)))


@dataclass(frozen=True)
class Ranked:
    """The rows with a value in the order of their places, by slice of a value."""

    order: NDArray[np.int64]  # (N,)
    start: NDArray[np.int64]  # (G,) of each slice in that order
    rows: NDArray[np.int64]  # (G,)
    digest: dict[int, bytes]  # by slice index: `key_of` value and number; sliced values only
    offset: NDArray[np.float64]  # (G,) a coin of each slice's first row

    @classmethod
    def of(cls, slices: Slices, met: pa.Table) -> "Ranked":
        code = met[VALUE].dictionary_encode().combine_chunks()
        code_N = code.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        unit_N = met["unit"].to_numpy()
        order = in_order(met, unit_N, code_N, slices.bits(met[UID.name]))
        order = order[code_N[order] >= 0]
        key_N2 = np.stack([unit_N[order], code_N[order]], axis=1)
        begins_N = np.append(True, (key_N2[1:] != key_N2[:-1]).any(axis=1))[: len(order)]
        start_G = np.flatnonzero(begins_N)
        firsts = met[UID.name].take(pa.array(order[start_G]))
        offset_G = coin(firsts, seed=slices.seed, stage=slices.stage, purpose="offset")
        slice_G, bucket_G = np.divmod(key_N2[start_G, 0], BUCKETS)
        sliced = np.flatnonzero(slices.count[bucket_G] > 1)
        values = code.dictionary.take(pa.array(key_N2[start_G[sliced], 1])).to_pylist()
        of_slices = zip(sliced.tolist(), values, slice_G[sliced].tolist(), strict=True)
        digests = {g: key_of(value, number) for g, value, number in of_slices}
        rows_G = np.diff(np.append(start_G, len(order)))
        return cls(order, start_G, rows_G, digests, offset_G)


def key_of(value: object, number: int) -> bytes:
    """Returns 128 bits of a value, then 64 of its slice's number."""
    digest = hashlib.blake2b(repr(value).encode(), digest_size=16).digest()
    return digest + np.uint64(number).tobytes()


def slices_of(slices: Slices, met: pa.Table) -> State:
    """Returns the slices of sliced values; each lies in one partition."""
    ranked = Ranked.of(slices, met)
    sliced = [*ranked.digest]
    key_M3 = np.frombuffer(b"".join(ranked.digest.values()), np.uint64).reshape(-1, 3)
    return {
        "digest": key_M3[:, :2],
        "slice": key_M3[:, 2],
        "rows": ranked.rows[sliced],
        "offset": ranked.offset[sliced],
    }


def known_slices(found: State) -> Known:
    """Returns by slice of a frequent value the rows before it, its value's rows and offset."""
    order = np.lexsort((found["slice"], found["digest"][:, 1], found["digest"][:, 0]))
    digest_M2, slice_M = found["digest"][order], found["slice"][order]
    rows_M = np.asarray(found["rows"], np.int64)[order]
    _, first_M, value_M = np.unique(digest_M2, axis=0, return_index=True, return_inverse=True)
    value_M = value_M.reshape(-1)
    ends_M = np.cumsum(rows_M)
    begins_V = (ends_M - rows_M)[first_M]
    before_M = ends_M - rows_M - begins_V[value_M]
    total_V = np.bincount(value_M, rows_M, len(begins_V)).astype(np.int64)
    offset_V = found["offset"][order][first_M]
    keys = (d.tobytes() + n.tobytes() for d, n in zip(digest_M2, slice_M, strict=True))
    values = before_M.tolist(), total_V[value_M].tolist(), offset_V[value_M].tolist()
    return dict(zip(keys, zip(*values, strict=True), strict=True))


def with_place(slices: Slices, known: Known, met: pa.Table) -> pa.Table:
    """Adds each row's place among the rows of its value, their number, and the value's coin."""
    ranked = Ranked.of(slices, met)
    before_G, total_G = np.zeros(len(ranked.rows), np.int64), ranked.rows.copy()
    offset_G = ranked.offset.copy()
    for g, digest in ranked.digest.items():
        before_G[g], total_G[g], offset_G[g] = known[digest]
    within_N = np.arange(len(ranked.order)) - np.repeat(ranked.start, ranked.rows)
    columns = {
        PLACE: np.repeat(before_G, ranked.rows) + within_N,
        SIZE: np.repeat(total_G, ranked.rows),
        OFFSET: np.repeat(offset_G, ranked.rows),
    }
    has_none_N = met[VALUE].is_null().to_numpy()
    out = met.select([n for n in met.column_names if n not in (VALUE, "unit")])
    for name, ordered_N in columns.items():
        whole_N = np.zeros(len(met), ordered_N.dtype)
        whole_N[ranked.order] = ordered_N
        out = out.append_column(name, pa.array(whole_N, mask=has_none_N))
    return out
