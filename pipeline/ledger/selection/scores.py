"""The numbers that select stages decide by: their thresholds, and histograms of their values."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.schema import IMAGE_BYTES, KEEP, UID
from clipmill.metadata.uid import coin_hash
from clipmill.pipeline.ledger.rows.ahead import MANY, ahead, of_parts
from clipmill.pipeline.ledger.rows.stored import binding, selects_up_to, stored
from clipmill.pipeline.planning.planned import Binding
from clipmill.pipeline.planning.selects import thresholds_of
from clipmill.pipeline.run_folder.state import RunState

# Shapes: N rows of a shard, B bins, E = B + 1 edges.

BINS = 48
SAMPLED = 200_000  # values that a scale is chosen from
TAIL = 0.005  # of the values at either end of a scale, which its outer bins take in
LOOKED_AT = ("caption_words", "min_side")  # whether a select reads them or not
GOES = {  # how a value that a threshold drops relates to its number
    **{"<": np.greater_equal, "<=": np.greater, ">": np.less_equal, ">=": np.less},
    **{"=": np.not_equal, "<>": np.equal},
}
BESIDE = {">=": -0.5, "<": -0.5, ">": 0.5, "<=": 0.5}  # between two whole numbers


@dataclass(frozen=True, kw_only=True)
class ScoreCut:
    """A threshold of one select stage, in its words, and where it stands on the scale.

    `limit` is the number itself, and `sign` how a value that stays relates to it; of `top`, whose
    number is a size, the least value that it let through.
    """

    text: str
    value: float
    stage: str
    sign: str
    limit: float
    is_size: bool = False

    def beyond(self, value: pa.ChunkedArray) -> NDArray[np.bool_]:
        """(N,) whether each row is on the side that goes; a row without a value is on none."""
        number_N = numbers(value)
        limit = self.limit
        if pa.types.is_floating(value.type):
            limit = float(value.type.to_pandas_dtype()(limit))  # as `where` compares
        return np.asarray(GOES[self.sign](number_N, limit) & ~np.isnan(number_N))


@dataclass(frozen=True, kw_only=True)
class Score:
    """A column of numbers, and how many rows have values in each bin, kept and dropped.

    The outer bins take in the tails; `undefined` rows have no finite value. `is_whole`: of whole
    numbers, whose cuts stand between two of them. The means are of all rows with a value and of the
    kept ones, null without any.
    """

    name: str
    stage: str
    cuts: tuple[ScoreCut, ...]
    is_whole: bool
    edges: tuple[float, ...]
    kept: tuple[int, ...]
    dropped: tuple[int, ...]
    undefined: int
    mean: float | None
    kept_mean: float | None


@dataclass
class ScoreColumn:
    """A column of numbers, before its values are counted."""

    name: str
    where: Binding
    is_whole: bool
    cuts: list[ScoreCut] = field(default_factory=list)


class Histogram:
    """Counts the values of a column, shard by shard."""

    def __init__(self, column: ScoreColumn, edge_E: NDArray[np.float64]) -> None:
        self.column = column
        self.edge_E = edge_E
        self.kept_B = np.zeros(len(edge_E) - 1, np.int64)
        self.dropped_B = np.zeros(len(edge_E) - 1, np.int64)
        self.undefined = 0
        self.sum = self.kept_sum = 0.0

    def count(self, value: pa.ChunkedArray, keep_N: NDArray[np.bool_]) -> None:
        number_N = numbers(value)
        defined_N = ~np.isnan(number_N)
        inside_N = np.clip(number_N, self.edge_E[0], self.edge_E[-1])
        self.kept_B += np.histogram(inside_N[defined_N & keep_N], self.edge_E)[0]
        self.dropped_B += np.histogram(inside_N[defined_N & ~keep_N], self.edge_E)[0]
        self.undefined += int((~defined_N).sum())
        self.sum += float(number_N[defined_N].sum())
        self.kept_sum += float(number_N[defined_N & keep_N].sum())

    def add(self, other: "Histogram") -> None:
        """What another has counted in the same bins."""
        self.kept_B += other.kept_B
        self.dropped_B += other.dropped_B
        self.undefined += other.undefined
        self.sum += other.sum
        self.kept_sum += other.kept_sum

    def score(self) -> Score:
        """The counts of all that was counted."""
        kept = int(self.kept_B.sum())
        rows = kept + int(self.dropped_B.sum())
        return Score(
            name=self.column.name,
            stage=self.column.where[0],
            cuts=tuple(self.column.cuts),
            is_whole=self.column.is_whole,
            edges=tuple(self.edge_E.tolist()),
            kept=tuple(self.kept_B.tolist()),
            dropped=tuple(self.dropped_B.tolist()),
            undefined=self.undefined,
            mean=self.sum / rows if rows else None,
            kept_mean=self.kept_sum / kept if kept else None,
        )


def score_columns(state: RunState, end: str) -> list[ScoreColumn]:
    """The columns of numbers that a select stage and those before it read, those with cuts first,
    and caption lengths and sizes that nobody decides by last.

    A column of their own is one of them where it says which way is better.
    """
    columns: dict[Binding, ScoreColumn] = {}
    for planned in selects_up_to(state, end):
        stage, bound = planned.name, planned.bindings[0]
        own = {
            column.name: (stage, column.name) for column in planned.stage.writes if column.better
        }
        for name, where in {**own, **bound}.items():
            dtype = state.plan.schema(*where)
            numeric = pa.types.is_integer(dtype) or pa.types.is_floating(dtype)
            if numeric and name != IMAGE_BYTES.name:
                columns.setdefault(where, ScoreColumn(name, where, pa.types.is_integer(dtype)))
        for at in thresholds_of(planned):
            column = columns.get(bound.get(at.column, (stage, at.column)))
            value: float | None = at.value
            if column and at.is_size:
                value = _lowest_kept(state, stage, column.where)
            if column and value is not None and math.isfinite(value):
                text = f"{at.text}: from {value:.4g}" if at.is_size else at.text
                beside = value + BESIDE.get(at.sign, 0.0) * column.is_whole
                sign = ">=" if at.is_size else at.sign
                column.cuts.append(
                    ScoreCut(
                        text=text,
                        value=beside,
                        stage=stage,
                        sign=sign,
                        limit=value,
                        is_size=at.is_size,
                    )
                )
    for name in LOOKED_AT:
        found = binding(state, end, name)
        if found and pa.types.is_integer(state.plan.schema(*found)):
            columns.setdefault(found, ScoreColumn(name, found, is_whole=True))
    return sorted(columns.values(), key=lambda column: not column.cuts)


def _lowest_kept(state: RunState, stage: str, where: Binding) -> float | None:
    """The least value that a stage's `top` let through: its cut; None where nothing is kept."""
    root = state.plan.stages[stage].root
    least = partial(_least_kept, root, {"value": where, "kept": (stage, KEEP.name)})
    every = range(state.stages[root].total or 0)
    found = of_parts(state, least, every, MANY)
    return min((value for value in found if value is not None), default=None)


def _least_kept(
    root: str, bound: Mapping[str, Binding], state: RunState, part: Sequence[int]
) -> float | None:
    tables = ahead(state.run, stored(state, root, bound).table, part)
    least = [pc.min(table["value"].filter(table["kept"])).as_py() for table in tables]
    return min((value for value in least if value is not None), default=None)


def histograms(state: RunState, root: str, columns: list[ScoreColumn]) -> list[Histogram]:
    """An empty histogram of each column, its scale chosen from the values of some rows, by hash."""
    rows = state.stages[root].shards.rows
    every = range(state.stages[root].total or 0 if columns else 0)
    values: list[list[NDArray[np.float64]]] = [[] for _ in columns]
    for found in of_parts(state, partial(_scale_values, root, columns, rows), every, MANY):
        for some, of in zip(values, found, strict=True):
            some.append(of)
    return [
        Histogram(column, edges_of(column, some))
        for column, some in zip(columns, values, strict=True)
    ]


def _scale_values(
    root: str, columns: list[ScoreColumn], rows: int, state: RunState, part: Sequence[int]
) -> list[NDArray[np.float64]]:
    """Values of each column that a scale is chosen from."""
    shards = stored(state, root, {str(i): column.where for i, column in enumerate(columns)})
    values: list[list[NDArray[np.float64]]] = [[] for _ in columns]
    for table in ahead(state.run, shards.table, part):
        if rows > SAMPLED:
            bits_N = coin_hash(table[UID.name], seed=state.plan.seed, stage=root, purpose="scale")
            table = table.filter(pa.array(bits_N < np.uint64(2**64 * (SAMPLED / rows))))
        for i, some in enumerate(values):
            number_N = numbers(table[str(i)])
            some.append(number_N[~np.isnan(number_N)])
    return [np.concatenate(some) for some in values]


def edges_of(column: ScoreColumn, values: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """(E,) equal bins from the lowest to the highest value, but for the tails; whole numbers get
    bins of their own where they are few."""
    cuts = [cut.value for cut in column.cuts]
    value = np.concatenate([*values, cuts])
    low, high = np.quantile(value if len(value) else np.zeros(1), [TAIL, 1 - TAIL])
    low, high = min([low, *cuts]), max([high, *cuts])
    if column.is_whole and high - low < BINS:
        return np.arange(math.floor(low), math.ceil(high) + 2) - 0.5
    room = (high - low or 1.0) / 40  # so that no cut stands on the frame
    return np.linspace(low - room, high + room, BINS + 1)


def numbers(value: pa.ChunkedArray) -> NDArray[np.float64]:
    """Float64, NaN where there is no finite value."""
    number_N = np.array(value.cast(pa.float64(), safe=False).fill_null(math.nan).to_numpy())
    number_N[np.isinf(number_N)] = math.nan
    return number_N
