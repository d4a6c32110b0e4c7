"""How many rows each cluster has, how many of them each select keeps, and a few of them by hash."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.pipeline.ledger.stored import Place

# Shapes: N rows of a shard, K clusters, E select stages, F few rows of each cluster, M rows in one.

FEW = 4  # rows of a cluster that are looked at
MOST_ENDS = 4  # select stages beside each other


class DrawnRow(NamedTuple):
    """Where a row stands, and whether each select keeps it."""

    place: Place
    kept: tuple[bool, ...]


ROW = np.dtype([("coin", "u8"), ("shard", "i4"), ("position", "i4"), ("kept", "?", (MOST_ENDS,))])


class Tally:
    """Counts rows by cluster, shard by shard; memory is bounded by the clusters."""

    def __init__(self, clusters: int, ends: int) -> None:
        self.rows_K = np.zeros(clusters, np.int64)
        self.kept_EK = np.zeros((ends, clusters), np.int64)
        self.without = 0  # rows that are in no cluster
        self._few_KF = np.zeros((clusters, FEW), ROW)
        self._few_KF["shard"] = -1  # no row yet

    def count(
        self,
        shard: int,
        cluster: pa.ChunkedArray,
        keeps: Sequence[pa.ChunkedArray],
        coin_N: NDArray[np.uint64],
    ) -> None:
        """Takes in one shard; the rows with the least coins are the few of their cluster."""
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

    def _draw(self, cluster_M: NDArray[np.int32], here_M: NDArray[np.void]) -> None:
        met = np.unique(cluster_M)
        known_M = self._few_KF[met].ravel()
        there_M = known_M["shard"] >= 0
        cluster_M = np.concatenate([np.repeat(met, FEW)[there_M], cluster_M])
        row_M = np.concatenate([known_M[there_M], here_M])
        order_M = np.lexsort((row_M["position"], row_M["shard"], row_M["coin"], cluster_M))
        cluster_M, row_M = cluster_M[order_M], row_M[order_M]
        nth_M = np.arange(len(cluster_M)) - np.searchsorted(cluster_M, cluster_M)
        is_few_M = nth_M < FEW
        self._few_KF[cluster_M[is_few_M], nth_M[is_few_M]] = row_M[is_few_M]

    def few(self, cluster: int) -> tuple[DrawnRow, ...]:
        """Some of its rows, the least coins first."""
        ends = len(self.kept_EK)
        return tuple(
            DrawnRow((shard, position), tuple(kept[:ends].tolist()))
            for _, shard, position, kept in self._few_KF[cluster].tolist()
            if shard >= 0
        )
