"""Reads the numbers by which select stages decide: thresholds, and histograms of values."""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.schema import IMAGE_BYTES, KEEP, UID
from clipmill.metadata.uid import coin_hash
from clipmill.pipeline.ledger.rows.ahead import read_parts
from clipmill.pipeline.ledger.rows.stored import binding, selects_up_to, tables
from clipmill.pipeline.planning.planned import Binding
from clipmill.pipeline.planning.selects import thresholds_of
from clipmill.pipeline.run_folder.state import RunState

# Shapes: N rows of a shard, B bins, E = B + 1 edges.

BINS = 48
SAMPLED = 200_000  # values from which a scale is chosen
TAIL = 0.005  # share of values past either end of a scale; the outer bins include them
EXACT = 2.0**52  # smaller numbers plus a half are float64 values
LOOKED_AT = ("caption_words", "min_side")  # columns shown even if no select reads them
GOES: dict[str, Callable[[Any, Any], Any]] = {  # how a dropped value compares with the threshold
    **{"<": operator.ge, "<=": operator.gt, ">": operator.le, ">=": operator.lt},
    **{"=": operator.ne, "<>": operator.eq},
}
BESIDE = {">=": -0.5, "<": -0.5, ">": 0.5, "<=": 0.5}  # puts a cut between two whole numbers


@dataclass(frozen=True, kw_only=True)
class ScoreCut:
    """A threshold of one select stage, with its text, and its position on the scale.

    `limit` is the number itself, and `sign` how a kept value compares with it; for a size, as in
    `top`, it is the least value kept.
    """

    text: str
    value: float
    stage: str
    sign: str
    limit: float
    is_size: bool = False

    def beyond(self, value: pa.ChunkedArray) -> NDArray[np.bool_]:
        """Returns (N,) whether each row is on the dropped side; false without a value."""
        number_N = value.cast(pa.float64(), safe=False).fill_null(math.nan).to_numpy()
        limit = as_compared(self.limit, value.type)
        return np.asarray(GOES[self.sign](number_N, limit) & ~np.isnan(number_N))


@dataclass(frozen=True, kw_only=True)
class Score:
    """A column of numbers, with rows per bin, kept and dropped.

    The outer bins include the tails; `undefined` rows have no finite value. `is_whole`: whole
    numbers, whose cuts stand between two of them. The means are of all rows with a value and of
    the kept ones, null without any.
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
        """Adds another's counts in the same bins."""
        self.kept_B += other.kept_B
        self.dropped_B += other.dropped_B
        self.undefined += other.undefined
        self.sum += other.sum
        self.kept_sum += other.kept_sum

    def score(self) -> Score:
        """Returns the histogram of all that was counted."""
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
    """Returns the columns of numbers that a select stage and those before it read, with cuts first;
    caption lengths and sizes without a cut come last.

    A select's own column is included if it declares which way is better.
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
        for threshold in thresholds_of(planned):
            column = columns.get(bound.get(threshold.column, (stage, threshold.column)))
            value: float | None = threshold.value
            if column and threshold.is_size:
                value = _lowest_kept(state, stage, column.where)
            if column and value is not None and math.isfinite(value):
                is_size = threshold.is_size
                column.cuts.append(
                    ScoreCut(
                        text=f"{threshold.text}: from {value:.6g}" if is_size else threshold.text,
                        value=value + BESIDE.get(threshold.sign, 0.0) * column.is_whole,
                        stage=stage,
                        sign=">=" if is_size else threshold.sign,
                        limit=value,
                        is_size=is_size,
                    )
                )
    for name in LOOKED_AT:
        source = binding(state, end, name)
        if source and pa.types.is_integer(state.plan.schema(*source)):
            columns.setdefault(source, ScoreColumn(name, source, is_whole=True))
    return sorted(columns.values(), key=lambda column: not column.cuts)


def _lowest_kept(state: RunState, stage: str, where: Binding) -> float | None:
    """Returns the least value that a stage's `top` kept: its cut; None if nothing is kept."""
    root = state.plan.stages[stage].root
    least = partial(_least_kept, root, {"value": where, "kept": (stage, KEEP.name)})
    every = range(state.stages[root].total or 0)
    values = read_parts(state, least, every)
    return min((value for value in values if value is not None), default=None)


def _least_kept(
    root: str, bound: Mapping[str, Binding], state: RunState, part: Sequence[int]
) -> float | None:
    kept = (table["value"].filter(table["kept"]) for table in tables(state, root, bound, part))
    least = [pc.min(values).as_py() for values in kept]
    return min((value for value in least if value is not None), default=None)


def histograms(state: RunState, root: str, columns: list[ScoreColumn]) -> list[Histogram]:
    """Returns an empty histogram of each column, with a scale from the values of sampled rows."""
    rows = state.stages[root].shards.rows
    every = range(state.stages[root].total or 0 if columns else 0)
    parts = [*read_parts(state, partial(_scale_values, root, columns, rows), every)]
    return [
        Histogram(column, edges_of(column, [values[i] for values in parts]))
        for i, column in enumerate(columns)
    ]


def _scale_values(
    root: str, columns: list[ScoreColumn], rows: int, state: RunState, part: Sequence[int]
) -> list[NDArray[np.float64]]:
    """Returns sampled values of each column, from which its scale is chosen."""
    bound = {str(i): column.where for i, column in enumerate(columns)}
    values: list[list[NDArray[np.float64]]] = [[] for _ in columns]
    for table in tables(state, root, bound, part):
        if rows > SAMPLED:
            bits_N = coin_hash(table[UID.name], seed=state.plan.seed, stage=root, purpose="scale")
            table = table.filter(pa.array(bits_N < np.uint64(2**64 * (SAMPLED / rows))))
        for i, column_values in enumerate(values):
            number_N = numbers(table[str(i)])
            column_values.append(number_N[~np.isnan(number_N)])
    return [np.concatenate(column_values) for column_values in values]


def edges_of(column: ScoreColumn, values: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Returns (E,) edges of equal bins without the tails; few whole numbers get a bin each."""
    cuts = [cut.value for cut in column.cuts]
    value = np.concatenate([*values, cuts])
    low, high = np.quantile(value if len(value) else np.zeros(1), [TAIL, 1 - TAIL])
    low, high = min([low, *cuts]), max([high, *cuts])
    size = max(abs(low), abs(high))
    if column.is_whole and high - low < BINS and size < EXACT:
        return np.arange(math.floor(low), math.ceil(high) + 2) - 0.5
    span = high - low or max(1.0, size / 2**20)  # of equal values
    margin = span / 40  # keeps cuts off the frame
    return np.linspace(low - margin, high + margin, BINS + 1)


def as_compared(limit: float, dtype: pa.DataType) -> float:
    """Returns a threshold as `where` compares it with a column of this type: in float32, as are
    its values."""
    return float(dtype.to_pandas_dtype()(limit)) if pa.types.is_floating(dtype) else limit


def numbers(value: pa.ChunkedArray) -> NDArray[np.float64]:
    """Returns (N,) float64 values, NaN if missing or not finite."""
    number_N = np.array(value.cast(pa.float64(), safe=False).fill_null(math.nan).to_numpy())
    number_N[np.isinf(number_N)] = math.nan
    return number_N
