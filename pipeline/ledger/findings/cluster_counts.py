"""Counts rows by cluster: all rows, rows kept by each select, and rows kept at other sizes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from math import isinf
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.ledger.rows.stored import Place, tables
from clipmill.pipeline.ledger.selection.counterfactual import inputs_of, split_inputs
from clipmill.pipeline.planning.planned import Binding, PlannedStage
from clipmill.pipeline.planning.selects import VARIED, thresholds_of, verdicts_at
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.stage import Threshold

# Shapes: N rows of a shard, K clusters, E select stages, F few rows of each cluster, M rows in one.

FEW = 4  # example rows of a cluster
MOST_ENDS = 4  # select stages that are compared


class DrawnRow(NamedTuple):
    """A row's place, and whether each select keeps it."""

    place: Place
    kept: tuple[bool, ...]


ROW = np.dtype([("coin", "u8"), ("shard", "i4"), ("position", "i4"), ("kept", "?", (MOST_ENDS,))])


class Tally:
    """Counts rows by cluster, shard by shard; memory is bounded by the clusters."""

    def __init__(self, clusters: int, ends: int) -> None:
        self.rows_K = np.zeros(clusters, np.int64)
        self.kept_EK = np.zeros((ends, clusters), np.int64)
        self.without = 0  # rows without a cluster
        self._few_KF = np.zeros((clusters, FEW), ROW)
        self._few_KF["shard"] = -1  # no row yet

    def count(
        self,
        shard: int,
        cluster: pa.ChunkedArray,
        keeps: Sequence[pa.ChunkedArray],
        coin_N: NDArray[np.uint64],
    ) -> None:
        """Adds one shard; a cluster's examples are its rows with the least hashes."""
        position_M = np.flatnonzero(cluster.is_valid().to_numpy())
        self.without += len(cluster) - len(position_M)
        cluster_M = cluster.drop_null().to_numpy()
        here_M = np.zeros(len(cluster_M), ROW)
        here_M["coin"], here_M["shard"], here_M["position"] = coin_N[position_M], shard, position_M
        clusters = len(self.rows_K)
        self.rows_K += np.bincount(cluster_M, minlength=clusters)
        for end, keep in enumerate(keeps):
            is_kept_M = keep.fill_null(False).to_numpy()[position_M]
            here_M["kept"][:, end] = is_kept_M
            self.kept_EK[end] += np.bincount(cluster_M[is_kept_M], minlength=clusters)
        self._draw(cluster_M, here_M)

    def _draw(self, cluster_M: NDArray[np.int32], new_M: NDArray[np.void]) -> None:
        clusters = np.unique(cluster_M)
        known_M = self._few_KF[clusters].ravel()
        is_row_M = known_M["shard"] >= 0
        cluster_M = np.concatenate([np.repeat(clusters, FEW)[is_row_M], cluster_M])
        row_M = np.concatenate([known_M[is_row_M], new_M])
        order_M = np.lexsort((row_M["position"], row_M["shard"], row_M["coin"], cluster_M))
        cluster_M, row_M = cluster_M[order_M], row_M[order_M]
        nth_M = np.arange(len(cluster_M)) - np.searchsorted(cluster_M, cluster_M)
        is_few_M = nth_M < FEW
        self._few_KF[cluster_M[is_few_M], nth_M[is_few_M]] = row_M[is_few_M]

    def few(self, cluster: int) -> tuple[DrawnRow, ...]:
        """Returns example rows of a cluster, ordered by hash."""
        ends = len(self.kept_EK)
        return tuple(
            DrawnRow((shard, position), tuple(kept[:ends].tolist()))
            for _, shard, position, kept in self._few_KF[cluster].tolist()
            if shard >= 0
        )


# Shapes: N rows of the pool, K clusters, G groups of clusters of like size.

TENTHS = tuple(Decimal(tenth) / 10 for tenth in range(1, 11))


@dataclass(frozen=True, kw_only=True)
class AtSize:
    """The rows of each group that a select keeps at one value of its size."""

    value: float
    rule: str
    is_today: bool
    kept: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class OverSize:
    """A select stage whose size is varied: `name` is its name for `sweep --vary`."""

    stage: str
    name: str
    points: tuple[AtSize, ...]


def over_size(
    state: RunState, planned: PlannedStage, cluster: Binding, group_K: NDArray[np.int8]
) -> OverSize | None:
    """Evaluates a select at other values of its first size, and at the current one.

    Returns None if no finite size decides in it, or none can be varied. A size is a number or a
    share of rows, or a number that one of the select's own columns is compared with. Shares are
    varied by tenths, numbers of rows by tenths of all rows in clusters, others halved and doubled.

    `group_K` is the group of each cluster. The stage's own functions decide over its stored
    columns, which are held in memory for all rows at once.
    """
    own = {column.name for column in planned.stage.writes}
    sizes = [size for size in thresholds_of(planned) if size.is_size or size.column in own]
    if not sizes or isinf(sizes[0].value):
        return None
    rows, made, group_N = _read(state, planned, sizes[0], cluster, group_K)
    values = _values(sizes[0], len(group_N[group_N >= 0]))
    groups = int(group_K.max()) + 1

    def points(values: list[Decimal]) -> list[AtSize]:
        return [
            AtSize(
                value=verdicts.value,
                rule=verdicts.rule,
                is_today=verdicts.value == sizes[0].value,
                kept=tuple(
                    np.bincount(group_N[verdicts.keep & (group_N >= 0)], minlength=groups).tolist()
                ),
            )
            for verdicts in verdicts_at(planned, sizes[0], values, rows, made)
        ]

    found = tuple(_unless_refused(points, values))
    return OverSize(stage=planned.name, name=sizes[0].name, points=found) if found else None


def _unless_refused(
    points: Callable[[list[Decimal]], list[AtSize]], values: list[Decimal]
) -> list[AtSize]:
    """Returns the points at all values at once; if the stage refuses a value, at all others."""
    try:
        return points(values)
    except RecipeError as error:
        if error.args[1] != VARIED:  # a fault of the stage itself
            raise
        single = [[value] for value in values] if len(values) > 1 else []
        return [point for part in single for point in _unless_refused(points, part)]


def _values(size: Threshold, rows: int) -> list[Decimal]:
    today = Decimal(str(size.value))
    if size.name.endswith("fraction"):
        return sorted({*TENTHS, today})
    if size.name.endswith("rows"):
        today = Decimal(int(size.value))
        return sorted({*(Decimal(max(1, int(rows * tenth))) for tenth in TENTHS), today})
    others = {today * Decimal(2) ** power for power in range(-3, 4)}
    if today == int(today):
        others = {max(Decimal(1), other.to_integral_value(ROUND_HALF_UP)) for other in others}
    return sorted({*others, today})


def _read(
    state: RunState,
    planned: PlannedStage,
    size: Threshold,
    cluster: Binding,
    group_K: NDArray[np.int8],
) -> tuple[pa.Table, pa.Table, NDArray[np.int8]]:
    """Returns what verdicts read, and (N,) the group of each row's cluster, -1 without one."""
    bound = inputs_of(planned, size) | {"cluster": cluster}
    every = pa.concat_tables(tables(state, planned.root, bound))
    rows, made = split_inputs(every.unify_dictionaries().combine_chunks())
    cluster_N = every["cluster"].fill_null(-1).to_numpy()
    return rows, made, np.where(cluster_N >= 0, group_K[cluster_N], np.int8(-1))
