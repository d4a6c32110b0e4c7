"""Shared parts of selects that draw a row several times: scores, and the table of draws."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Meta
from numpy.typing import NDArray

from clipmill.metadata.schema import IDENTITY, IMAGE_BYTES, KEEP, REASON, REPEATS, UID, Column
from clipmill.metadata.uid import coin
from clipmill.pipeline.dataset import Context, Inputs
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.stage import (
    DatasetStage,
    Gigabytes,
    NonEmpty,
    OneUp,
    Threshold,
    Verdicts,
    location,
    need_types,
)
from clipmill.stages.ops.tables.rows import DROPPED, in_order
from clipmill.stages.select._judged import NO_IMAGE, first_of, judged_rows, left_out

# Shapes: N rows, R draws.

Weight = Annotated[float, Meta(ge=-1e6, le=1e6)]
FIRST_DRAW = Column(
    "first_draw", pa.int64(), "draws, 0 up", "Kept where `rows` is above: the draws before its own."
)
NOT_DRAWN = "not_drawn"


@dataclass(frozen=True, kw_only=True)
class DrawingSelect(DatasetStage):
    """A select by many draws, with chances that grow with a weighted sum of scores."""

    # factor of each column of scores, which is first brought to mean 0 and deviation 1
    weights: Annotated[dict[NonEmpty, Weight], Meta(min_length=1)]
    rows: OneUp  # number of draws: the sum of `repeats`
    memory_gb: Gigabytes = location(4)  # memory of the one worker that draws: 100 bytes a row

    determinism = "exact"
    learns = ""
    optional_reads = (KEEP, IMAGE_BYTES)
    writes = (KEEP, FIRST_DRAW, REPEATS)

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            if not np.isfinite(weight) or not weight:
                do = "give a finite number other than 0, or leave the column out"
                raise RecipeError(f"'{name}' has weight {weight}", "key `weights`", do)

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(self.weights)

    @property
    def reasons(self) -> tuple[str, ...]:
        return (DROPPED, NO_IMAGE, *(f"undefined:{name}" for name in self.weights), NOT_DRAWN)

    def check(self, types: Mapping[str, pa.DataType]) -> None:
        """Raises StageError for a column that holds no numbers."""
        need_types(types, self.weights, "key `weights`")

    def thresholds(self) -> tuple[Threshold, ...]:
        """Returns `rows`: fewer draws are the first of these draws."""
        return (Threshold.own("rows", FIRST_DRAW.name, "<", self.rows, f"rows = {self.rows}"),)

    def verdicts(
        self, threshold: Threshold, values: Sequence[Decimal], rows: pa.Table, made: pa.Table
    ) -> Iterator[Verdicts]:
        """Yields the rows that so many draws keep; ValueError for more than were drawn."""
        first_N = made[FIRST_DRAW.name].fill_null(self.rows).to_numpy()
        for value in values:
            if not 1 <= value <= self.rows or value != int(value):
                raise ValueError(f"rows is {value}; it is a whole number up to {self.rows:,} draws")
            yield Verdicts(float(value), f"rows = {value}", first_N < int(value))

    def explain(self, reason: str, made: Mapping[str, Any]) -> str:
        """Returns the first draw of a drawn row, and how often it was drawn; else ""."""
        if (first := made[FIRST_DRAW.name]) is None:
            return ""
        times = made[REPEATS.name]
        return f"its first draw is number {first + 1:,} of {self.rows:,}; repeats: {times:,}"

    def run(self, inputs: Inputs, ctx: Context) -> None:
        scored = ctx.map_shards(self.scored, inputs.rows)
        ctx.say("drawing rows")
        whole = ctx.shuffle(scored, UID.name, partitions=1)
        ctx.restore(ctx.map_shards(partial(self.judged, ctx.worker.seed, ctx.worker.stage), whole))

    def scored(self, rows: pa.Table) -> pa.Table:
        """Returns identity, the reason to stay outside the draws, and the scores in float64."""
        scores = {name: rows[name].cast(pa.float64(), safe=False) for name in self.weights}
        masks = left_out(rows)
        for name, score in scores.items():
            masks[f"undefined:{name}"] = pc.invert(pc.is_finite(score).fill_null(False))
        columns = {name: rows[name] for name in IDENTITY} | {REASON.name: first_of(masks)}
        return pa.table(columns | {f"of {name}": score for name, score in scores.items()})

    def judged(self, seed: int, stage: str, rows: pa.Table) -> pa.Table:
        """Returns keep, first draw, repeats and reason of every row; `rows` are all of the pool."""
        order = in_order(rows)  # sums and ties then hang on no shard
        order = order[rows[REASON.name].is_null().to_numpy()[order]]
        drawing = rows.take(pa.array(order))
        first_N, repeats_N = np.full(len(rows), -1), np.zeros(len(rows), np.int32)
        if len(drawing):
            clocks = partial(clock, drawing[UID.name], seed, stage)
            score_N = self.mixed(drawing, stage)
            drawn_R = self.drawn(score_N, clocks, stage)
            drawn, first, repeats = np.unique(drawn_R, return_index=True, return_counts=True)
            first_N[order[drawn]], repeats_N[order[drawn]] = first, repeats
        none_N = first_N < 0
        reason = pc.coalesce(rows[REASON.name], pc.if_else(pa.array(none_N), NOT_DRAWN, None))
        made = {FIRST_DRAW: first_N, REPEATS: repeats_N}
        columns = {c.name: pa.array(value_N, mask=none_N) for c, value_N in made.items()}
        return judged_rows(rows, reason, columns)

    def mixed(self, drawing: pa.Table, stage: str) -> NDArray[np.float64]:
        """Returns (N,) the weighted sum of the standardised scores; StageError for a constant."""
        score_N = np.zeros(len(drawing))
        for name, weight in self.weights.items():
            value_N = drawing[f"of {name}"].to_numpy()
            if value_N.min() == value_N.max():
                found = (
                    f"'{name}' is {value_N[0]:g} in all {len(value_N):,} rows, and tells none apart"
                )
                raise StageError(found, f"stage '{stage}', key `weights`", "leave the column out")
            with np.errstate(over="ignore", invalid="ignore"):
                deviation = value_N.std()
            if not 0 < deviation < np.inf:  # out of float64: values of 1e200, or of 1e-200
                found = f"the deviation of '{name}' in {len(value_N):,} rows is {deviation:g}"
                raise StageError(found, f"stage '{stage}', key `weights`", "scale the column")
            score_N += weight * (value_N - value_N.mean()) / deviation
        return score_N

    @abstractmethod
    def drawn(self, score_N: NDArray[np.float64], clocks: "Clocks", stage: str) -> NDArray[np.intp]:
        """Returns (R,) the rows in the order in which they are drawn."""


Clocks = Callable[[int], NDArray[np.float64]]  # exponential waiting times of a round, (N,)


def clock(uid: pa.ChunkedArray, seed: int, stage: str, number: int) -> NDArray[np.float64]:
    """Returns (N,) waiting times of mean 1, a hash of each uid in this round."""
    u_N = coin(uid, seed=seed, stage=stage, purpose=f"draw {number}")
    return -np.log(np.maximum(u_N, 2.0**-54))


def least(key_N: NDArray[np.float64], size: int) -> NDArray[np.intp]:
    """Returns (size,) the rows of least key, rising; of equal ones the first."""
    among = np.flatnonzero(key_N <= np.partition(key_N, size - 1)[size - 1])
    return among[np.argsort(key_N[among], kind="stable")][:size]
