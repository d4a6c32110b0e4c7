"""Which rows are on a map: those with a vector and a cluster, of too many the lowest coins."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import CLUSTER_ID, KEEP, UID
from clipmill.metadata.uid import uniform
from clipmill.pipeline.dataset import Shards, State, Task
from clipmill.stages.export._plane import moments
from clipmill.stages.ops.vectors import as_matrix, unit_rows

# Shapes: N rows of a shard or batch, D width of a vector, C bins of coins.

LEAST_EXPONENT = 960 << 10  # below that of 2^-53, the least coin above 0
BINS = (1024 << 10) - LEAST_EXPONENT


@dataclass(frozen=True)
class Pick:
    """Which rows are on the map."""

    column: str
    only_kept: bool
    coins: Callable[[pa.ChunkedArray], NDArray[np.uint64]]
    below: int = BINS  # the first bin of coins that is not

    def __call__(
        self, batch: pa.Table
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], dict[str, int]]:
        """(N, D) unit vectors, (N,) whether it is on it, and how many are not, by first reason."""
        unit_ND = unit_rows(as_matrix(batch[self.column]))
        fine = {
            "not_kept": kept(batch) | (not self.only_kept),
            "no_embedding": np.isfinite(unit_ND).all(axis=1) & (unit_ND.shape[1] > 0),
            "no_cluster": batch[CLUSTER_ID.name].is_valid().to_numpy(),
            "beyond_rows": bins_of(self.coins(batch[UID.name])) < self.below,
        }
        taken_N = np.ones(len(batch), bool)
        counts = {}
        for reason, fine_N in fine.items():
            counts[reason] = int(np.count_nonzero(taken_N & ~fine_N))
            taken_N &= fine_N
        return unit_ND, taken_N, counts


def kept(batch: pa.Table) -> NDArray[np.bool_]:
    """(N,) whether a select stage keeps the row; true where none stands before."""
    if KEEP.name not in batch.column_names:
        return np.ones(len(batch), bool)
    return batch[KEEP.name].fill_null(False).to_numpy()


def bins_of(coin_N: NDArray[np.uint64]) -> NDArray[np.int64]:
    """(N,) a bin for each coin, of a thousandth of it: as fine for few rows as for many."""
    bits_N = uniform(coin_N).view(np.int64) >> 42
    return np.maximum(bits_N - LEAST_EXPONENT, 0)


def cut(coins_C: NDArray, rows: int) -> int:
    """The first bin of which no row is taken, so that at most so many are."""
    return int(np.searchsorted(coins_C.cumsum(), rows, side="right"))


def surveyed(pick: Pick, shard: pa.Table) -> State:
    """The moments of the rows that may be on the map, and their coins by bin."""
    unit_ND, taken_N, _ = pick(shard)
    bins_N = bins_of(pick.coins(shard[UID.name]))[taken_N]
    return moments(unit_ND[taken_N]) | {"coins_C": np.bincount(bins_N, minlength=BINS)}


def merged(a: State, b: State) -> State:
    """Their sum; a shard without a vector knows no width."""
    is_known = {name: (a[name].size == b[name].size) for name in a}
    return {
        name: np.add(a[name], b[name]) if is_known[name] else max(a[name], b[name], key=np.size)
        for name in a
    }


def counted(pick: Pick, rows: Shards, shard: int, task: Task) -> dict[str, int]:
    """Rows of a shard, those on the map, and the others by reason."""
    table = rows.table(shard)
    _, taken_N, left = pick(table)
    return {"rows": len(table), "exported": int(np.count_nonzero(taken_N)), **left}
