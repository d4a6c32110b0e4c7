"""Mixes several scores into one: a weighted sum of scaled columns, with weights given or learnt."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Meta
from numpy.typing import NDArray

from clipmill.metadata.schema import (
    IMAGE_EMBEDDING,
    TEXT_EMBEDDING,
    UID,
    Column,
)
from clipmill.metadata.uid import coin_hash
from clipmill.pipeline.dataset import Context, Inputs, Shards, State
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.stage import DatasetStage, Gigabytes, NonEmpty, later, location, need_types
from clipmill.stages.ops.tables.rows import added, joined, put_json, with_reason
from clipmill.stages.ops.vectors.matrices import as_matrix, refuse_widths, unit_rows, unusable
from clipmill.stages.score._flyt import Pairs, learnt
from clipmill.stages.score._sums import least, mean_of, whole

# Shapes: N rows, K columns that are mixed, L labelled rows.

Scale = Literal["z", "rank", "min_max"]
Weight = Annotated[float, Meta(ge=-1e6, le=1e6)]
MIX_SCORE = Column("mix_score", pa.float32(), "any", "Weighted sum of scores.", better="high")
SUMMARY = "mix.json"
LABELLED = 20_000  # good rows, and bad ones, that weights are learnt from: those of least hash
EMBEDDED = 8_192  # likewise, with their vectors
KNOTS = 2**12  # rows of least hash, whose values ranks are counted at, and interpolated between
STEPS, NEAR = 50, 1e-9  # of Newton's method at most; the change of a weight that ends it
FEW = 20  # rows of either kind, too few to learn from


@dataclass(frozen=True, kw_only=True)
class Learn:
    """Weights by logistic regression of good against bad rows, both kinds weighing equally; or by
    FLYT's gradient: bad rows are weighted by the mixture, so that learning from them is good for
    the good ones."""

    columns: Annotated[tuple[NonEmpty, ...], Meta(min_length=1)]  # of numbers or truth values
    good: NonEmpty  # column that is true for trusted rows, such as `trusted.keep`
    # column that is true for bad rows, such as planted ones; without it all others are
    bad: NonEmpty | None = None
    by: Literal["regression", "flyt"] = "regression"  # flyt reads the embeddings, too
    penalty: Annotated[float, Meta(ge=1e-6, le=1e6)] = 1e-3  # of the regression, on squared weights


@dataclass(frozen=True, kw_only=True)
class Mix(DatasetStage):
    """Sum of named columns, each scaled and weighted; null where one of them is null or not finite.

    `mix_of_COLUMN` is the column's part: its weight times the scaled value less the mean of all
    rows, so the parts add up to the mixture less its mean, and `clipmill why` can name those that
    decided. Scaling: `z` to mean 0 and deviation 1; `rank` to the share of rows below, ties
    counting half; `min_max` to 0 for the least value and 1 for the greatest. Rows that selects
    dropped count too; with `over` scales and weights are those of its rows, and all are mixed. So
    a cut of one column's `rank` is a share of some rows, applied to others. out/mix.json has each
    column's weight and range.

    Source: M-FLYT's linear mixture of scores (Shechter and Carmon 2025), with `by: flyt`. Departs:
    the reference model is a linear map of stored image embeddings, moved by 200 batches of 512.
    Error: relative 1e-7 for mixtures near 1, against float64; learnt weights have six digits, as
    later ones depend on how many threads a library sums with. `rank` is exact up to 4,096 rows;
    of 10^6 it errs by 7e-6 of a share on average, 1e-3 at most. Speed: tests/benchmarks/mix.py.
    Example: {after: [ingest.image_folder, embed.clip, score.clip_score, annotate.image],
      weights: {clip_score: 1, min_side: 0.2}, scales: {min_side: rank}}
    """

    weights: dict[NonEmpty, Weight] | None = None  # factor of each scaled column
    learn: Learn | None = None  # or: weights that tell good rows from bad ones
    scale: Scale = "z"  # of the columns
    scales: dict[NonEmpty, Scale] | None = None  # of single columns instead
    # column that is true for the rows that scales and weights come from, else all: `home.keep`
    over: NonEmpty | None = later(None)
    memory_gb: Gigabytes = location(4)  # memory of one worker, in GB

    version = 2
    determinism = "exact"
    at_once = 8
    reasons = ("undefined",)

    def __post_init__(self) -> None:
        if (self.weights is None) == (self.learn is None):
            both = "neither `weights` nor `learn`" if self.weights is None else "both"
            do = "write `weights: {clip_score: 1}`, or `learn: {columns: …, good: …}`"
            raise RecipeError(f"score.mix has {both}", "its settings", do)
        for name, weight in (self.weights or {"": 1}).items():
            if not np.isfinite(weight) or not weight:
                do = "give a finite number other than 0, or leave the column out"
                raise RecipeError(f"'{name}' has weight {weight}", "key `weights`", do)
        if len({*self.parts}) < len(self.columns):
            raise RecipeError("a column stands twice", "key `columns`", "name each column once")
        for name in (self.scales or {}).keys() - {*self.columns}:
            do = f"name a column of the mixture: {', '.join(self.columns)}"
            raise RecipeError(f"'{name}' is not mixed", "key `scales`", do)

    @property
    def columns(self) -> tuple[str, ...]:
        return self.learn.columns if self.learn else tuple(self.weights or ())

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(f"mix_of_{name.replace('.', '_')}" for name in self.columns)

    def scale_of(self, name: str) -> Scale:
        return (self.scales or {}).get(name, self.scale)

    @property
    def ranked(self) -> list[str]:
        return [name for name in self.columns if self.scale_of(name) == "rank"]

    @property
    def labels(self) -> tuple[str, ...]:
        both = (self.learn.good, self.learn.bad) if self.learn else ()
        return tuple(name for name in (*both, self.over) if name)

    @property
    def vectors(self) -> tuple[Column, ...]:
        by_flyt = self.learn is not None and self.learn.by == "flyt"
        return (IMAGE_EMBEDDING, TEXT_EMBEDDING) if by_flyt else ()

    @property
    def learns(self) -> str:
        return self.over or ""

    @property
    def reads(self) -> tuple[Column | str, ...]:
        return (*dict.fromkeys([*self.columns, *self.labels]), *self.vectors)

    @property
    def writes(self) -> tuple[Column, ...]:
        parts = [Column(name, pa.float32(), "of mix_score", "Its part.") for name in self.parts]
        return (MIX_SCORE, *parts)

    def check(self, types: Mapping[str, pa.DataType]) -> None:
        """Raises StageError for a column that holds no numbers, or labels that are no truths."""
        kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
        need_types(types, self.columns, "what is mixed", kinds=kinds)
        for name in self.labels:
            do = "name columns of truth values, such as `keep` of a select"
            where = "key `over`" if name == self.over else "key `learn`"
            need_types(types, [name], where, do, kinds=(pa.types.is_boolean,))

    def tells(self, values: Mapping[str, Any], kept: bool) -> str:
        """Returns which parts speak for what became of a row, and which against it."""
        named = zip(self.parts, self.columns, strict=True)
        parts = sorted(((values[part] or 0, name) for part, name in named), reverse=kept)
        spoke = [f"{name} ({part:+.2f})" for part, name in parts if (part > 0) == kept]
        against = [f"{name} ({part:+.2f})" for part, name in parts[::-1] if (part > 0) != kept]
        clauses = (("for its", spoke), ("in spite of its", against))
        return ", ".join(f"{how} {' and '.join(words[:2])}" for how, words in clauses if words)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        rows, scalings = inputs.rows, [Scaling(np.zeros(1), np.zeros(1), 0)] * len(self.columns)
        weights = [0.0] * len(scalings)
        if len(rows):
            rows = ctx.keep_local(rows)
            span = ctx.reduce(self.span, rows, widened)
            if self.over and not int(span["rows"]):
                found = f"'{self.over}' is true for no row that has all columns"
                where = f"stage '{ctx.worker.stage}', key `over`"
                raise StageError(found, where, "name rows that scales can come from")
            if int(span["rows"]):
                scalings = self.scalings(ctx, rows, span)
                weights = [*(self.weights or {}).values()]
                weights = weights or [float(f"{w:.6g}") for w in self.learnt(ctx, rows, scalings)]
                about = zip(self.columns, weights, span["low"], span["high"], strict=True)
                names = "column", "weight", "least", "greatest"
                columns = [dict(zip(names, values, strict=True)) for values in about]
                item = {"rows": int(span["rows"]), "columns": columns}
                ctx.map(partial(put_json, SUMMARY), [item])
        ctx.restore(ctx.map_shards(partial(self.mixed, scalings, weights), rows))

    def values(self, rows: pa.Table, over: str | None) -> tuple[NDArray, NDArray[np.bool_]]:
        """Returns (K, N) the columns, NaN for null, and (N,) which rows of `over` have them all."""
        columns = [rows[name].cast(pa.float64(), safe=False).to_numpy() for name in self.columns]
        there = [truth(rows, over)] if over else []
        there += [np.isfinite(c_N) for c_N in columns]
        return np.stack(columns), np.logical_and.reduce(there)

    def usable(self, rows: pa.Table) -> NDArray[np.float64]:
        value_KN, usable_N = self.values(rows, self.over)
        return value_KN if usable_N.all() else value_KN[:, usable_N]

    def span(self, rows: pa.Table) -> State:
        """Returns the least and greatest value of each column, and the number of usable rows."""
        value_KN = self.usable(rows)
        low_K, high_K = value_KN.min(axis=1, initial=np.inf), value_KN.max(axis=1, initial=-np.inf)
        return {"low": low_K, "high": high_K, "rows": np.array(value_KN.shape[1])}

    def sums(self, low_K: NDArray, high_K: NDArray, rows: pa.Table) -> State:
        """Returns sums of the values from 0 to 1 and of their squares, in whole numbers."""
        share_KN = self.usable(rows)
        share_KN -= low_K[:, None]
        share_KN /= (high_K - low_K)[:, None]
        return {"values": whole(share_KN), "squares": whole(share_KN**2)}

    def drawn(self, seed: int, stage: str, rows: pa.Table) -> State:
        """Returns hash and values of the usable rows of least hash."""
        value_KN, usable_N = self.values(rows, self.over)
        hash_N = coin_hash(rows[UID.name], seed=seed, stage=stage, purpose="ranks")
        some = slice(None) if usable_N.all() else usable_N
        return least(KNOTS, {"hash": hash_N[some], "values": value_KN[:, some].T})

    def counted(self, knots: Mapping[str, NDArray[np.float64]], rows: pa.Table) -> State:
        """Counts by column, for each knot, the values between the last one and it, and at it."""
        value_KN = self.usable(rows)
        state: dict[str, NDArray[Any]] = {}
        for name, knot_M in knots.items():
            value_N = np.sort(value_KN[self.columns.index(name)])
            below_M = np.searchsorted(value_N, knot_M)
            up_to_M, is_at_M = below_M.copy(), np.append(value_N, np.nan)[below_M] == knot_M
            up_to_M[is_at_M] = np.searchsorted(value_N, knot_M[is_at_M], "right")
            ends = np.stack([below_M, up_to_M], axis=1).ravel()  # no value is above the last knot
            state[name] = np.diff(ends, prepend=0)
        return state

    def scalings(self, ctx: Context, rows: Shards, span: State) -> list["Scaling"]:
        """Returns how each column is scaled; StageError for a constant one."""
        low_K, high_K = np.array(span["low"], np.float64), np.array(span["high"], np.float64)
        count = int(span["rows"])
        with np.errstate(over="ignore", divide="ignore"):
            steep_K = 1 / (high_K - low_K)  # 0 or infinite where a span is no float64
        is_scaled_K = [name not in self.ranked for name in self.columns]
        unfit_K = is_scaled_K & ((steep_K == 0) | np.isinf(steep_K)) | (low_K == high_K)
        for number in np.flatnonzero(unfit_K)[:1]:
            name, low, high = self.columns[number], low_K[number], high_K[number]
            found = f"'{name}' is {low:g} in all {count:,} rows, and tells none apart"
            do = "leave the column out"
            if low < high:
                found = f"'{name}' goes from {low:g} to {high:g}: float64 cannot scale that"
                do = "scale the column by rank, or leave it out"
            where = f"stage '{ctx.worker.stage}', key `{'learn' if self.learn else 'weights'}`"
            raise StageError(found, where, do)
        sums: Any = {}  # ranks need none
        if len(self.ranked) < len(self.columns):
            sums = ctx.reduce(partial(self.sums, low_K, high_K), rows, added)
        knots: dict[str, NDArray[np.float64]] = {}
        if self.ranked:
            draw = partial(self.drawn, ctx.worker.seed, ctx.worker.stage)
            some: Any = ctx.reduce(draw, rows, partial(least, KNOTS))
            for name in self.ranked:
                index = self.columns.index(name)
                values = [*some["values"][:, index], low_K[index], high_K[index]]
                knots[name] = np.unique(values)
        counts: Any = ctx.reduce(partial(self.counted, knots), rows, added) if knots else {}
        scalings = []
        for index, name in enumerate(self.columns):
            ends = np.array([low_K[index], high_K[index]])
            if name in self.ranked:
                scalings.append(ranking(knots[name], counts[name] / count))
                continue
            mean = mean_of(sums["values"][:, index], count)
            square = mean_of(sums["squares"][:, index], count)
            if self.scale_of(name) == "z":
                share = np.array([0, 1]) - mean
                scalings.append(Scaling(ends, share / np.sqrt(square - mean**2), 0))
            else:
                scalings.append(Scaling(ends, np.array([0.0, 1.0]), mean))
        return scalings

    def learnt(self, ctx: Context, rows: Shards, scalings: list["Scaling"]) -> NDArray[np.float64]:
        """Returns the weights that tell good rows from bad ones; StageError if either are few."""
        seed, stage = ctx.worker.seed, ctx.worker.stage
        labelled = partial(self.labelled, scalings, seed, stage)
        found: Any = self.fewest(ctx.reduce(labelled, rows, self.few))
        good_L = found["good"]
        for kind, size in (("good", good_L.sum()), ("bad", (~good_L).sum())):
            if size < FEW:
                raise StageError(
                    found=f"{size} {kind} rows with all columns, and {FEW} are needed",
                    where=f"stage '{stage}', key `learn.{kind}`",
                    do="name a column that is true in more rows",
                )
        assert self.learn is not None
        if not self.vectors:
            return fitted(found["scaled"], good_L, self.learn.penalty)
        pool, trusted = (
            Pairs(*(found[column.name][kind_L] for column in self.vectors))
            for kind_L in (~good_L, good_L)
        )
        refuse_widths(pool.image, pool.text, f"stage '{stage}', key `learn.by`")
        return learnt(found["scaled"][~good_L], pool, trusted)

    def labelled(self, scalings: list["Scaling"], seed: int, stage: str, rows: pa.Table) -> State:
        """Returns the good and bad rows: hash, label, and scaled columns."""
        assert self.learn is not None
        value_KN, defined_N = self.values(rows, self.over)
        good_N = truth(rows, self.learn.good)
        bad_N = truth(rows, self.learn.bad) if self.learn.bad else ~good_N
        unit = {column.name: unit_rows(as_matrix(rows[column.name])) for column in self.vectors}
        for unit_ND in unit.values():
            defined_N = defined_N & ~unusable(unit_ND)
        rows_L = np.flatnonzero(defined_N & (good_N ^ bad_N))
        hash_N = coin_hash(rows[UID.name], seed=seed, stage=stage, purpose="labelled")
        columns = zip(scalings, value_KN[:, rows_L], strict=True)
        scaled_LK = np.stack([scaling.of(value_L) for scaling, value_L in columns], axis=1)
        found = {"hash": hash_N, "good": good_N, **unit}
        found = {name: value_N[rows_L] for name, value_N in found.items()}
        return self.fewest(found | {"scaled": scaled_LK})

    def few(self, left: State, right: State) -> State:
        """Returns the labelled rows of both; of many the fewest."""
        both = joined(left, right)
        return both if len(both["hash"]) < 4 * self.most else self.fewest(both)

    def fewest(self, every: Any) -> State:
        """Returns the good rows, and the bad ones, of least hash, in its order."""
        kinds = every["good"], ~every["good"]
        parts = [{name: array[kind] for name, array in every.items()} for kind in kinds]
        return joined(*(least(self.most, part) for part in parts))

    @property
    def most(self) -> int:
        return EMBEDDED if self.vectors else LABELLED

    def mixed(self, scalings: list["Scaling"], weights: list[float], rows: pa.Table) -> pa.Table:
        """Returns the mixture, its parts, and the reason of every row."""
        value_KN, defined_N = self.values(rows, None)
        mix_N, parts = np.zeros(len(rows)), []
        for scaling, weight, value_N in zip(scalings, weights, value_KN, strict=True):
            scaled_N = scaling.of(np.where(defined_N, value_N, 0))
            scaled_N *= weight
            mix_N += scaled_N
            parts.append(scaled_N - weight * scaling.mean)
        made = {
            column.name: pa.array(value_N.astype(np.float32), mask=~defined_N)
            for column, value_N in zip(self.writes, [mix_N, *parts], strict=True)
        }
        return with_reason(rows, made, pc.if_else(pa.array(defined_N), None, self.reasons[0]))


@dataclass(frozen=True)
class Scaling:
    """A column's scaled values at some of its values, linear between them, and their mean."""

    value: NDArray[np.float64]  # (M,) ascending
    scaled: NDArray[np.float64]  # (M,)
    mean: float

    def of(self, value_N: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns (N,) the scaled values, a new array."""
        if len(self.value) == 2:  # several times as fast
            slope = np.diff(self.scaled)[0] / np.diff(self.value)[0]
            return (value_N - self.value[0]) * slope + self.scaled[0]
        with np.errstate(over="ignore"):  # near values in turn are looked up seven times as fast
            bits_N = value_N.astype(np.float32).view(np.int32)
        key_N = bits_N.astype(np.int64) << 32 | np.arange(len(bits_N))
        key_N.sort()  # in half of argsort's time
        order = key_N & (2**32 - 1)
        scaled_N = np.empty(len(value_N))
        scaled_N[order] = np.interp(value_N[order], self.value, self.scaled)
        return scaled_N


def widened(left: State, right: State) -> State:
    """Returns the least and greatest values of both, and the number of rows."""
    low_K, high_K = np.minimum(left["low"], right["low"]), np.maximum(left["high"], right["high"])
    return {"low": low_K, "high": high_K, "rows": np.add(left["rows"], right["rows"])}


def ranking(knot_M: NDArray[np.float64], share_2M: NDArray[np.float64]) -> Scaling:
    """Returns the share of rows below each knot, half of those at it among them, and just before
    and behind it, given the shares between knots and at them."""
    below_M, up_to_M = np.cumsum(share_2M).reshape(-1, 2).T
    values = np.nextafter(knot_M, -np.inf), knot_M, np.nextafter(knot_M, np.inf)
    value_M3, shares = np.stack(values, 1), (below_M, (below_M + up_to_M) / 2, up_to_M)
    is_apart_M3 = np.ones(value_M3.shape, bool)  # nothing lies between neighbouring numbers
    is_apart_M3[1:, 0] = value_M3[1:, 0] > knot_M[:-1]
    is_apart_M3[:-1, 2] = value_M3[:-1, 2] < knot_M[1:]
    return Scaling(value_M3[is_apart_M3], np.stack(shares, 1)[is_apart_M3], 0.5)


def truth(rows: pa.Table, name: str) -> NDArray[np.bool_]:
    """Returns (N,) whether a column of truth values is true; null is not."""
    return rows[name].fill_null(False).to_numpy()


def fitted(x_LK: NDArray[np.float64], good_L: NDArray[np.bool_], penalty: float) -> NDArray:
    """Returns (K,) the weights of a logistic regression, by Newton's method."""
    x_LK = np.column_stack([x_LK, np.ones(len(x_LK))])  # the last weight is the bias
    weight_L = np.where(good_L, 0.5 / good_L.sum(), 0.5 / (~good_L).sum())
    ridge_K = np.append(np.full(x_LK.shape[1] - 1, penalty), 0)
    beta_K = np.zeros(x_LK.shape[1])
    for _ in range(STEPS):
        p_L = (1 + np.tanh(x_LK @ beta_K / 2)) / 2
        slope_K = x_LK.T @ (weight_L * (p_L - good_L)) + ridge_K * beta_K
        curve_KK = (x_LK.T * (weight_L * p_L * (1 - p_L))) @ x_LK + np.diag(ridge_K)
        step_K = np.linalg.lstsq(curve_KK, slope_K)[0]
        beta_K -= step_K
        if np.abs(step_K).max() < NEAR:
            break
    return beta_K[:-1]
