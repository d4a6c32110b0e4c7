"""Rows that draw by each of their concepts, one success being enough: MetaCLIP's balancing.

A concept of weight w draws u * w, u uniform in [0, 1) and a hash of seed, stage, uid and concept.
Below t that is with probability min(1, t / w), whatever t; the least draw of a row tells them all.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.schema import CONCEPT_IDS, IMAGE_BYTES, KEEP, UID
from clipmill.metadata.uid import coin, coin_hash

# Shapes: N rows, M pairs of a row and one of its concepts, E entries of the list.


@dataclass(frozen=True)
class Pairs:
    """Rows with each of their concepts; no row is without."""

    start: NDArray[np.int64]  # (N,) each row's first pair
    size: NDArray[np.int64]  # (N,)
    concept: NDArray[np.int32]  # (M,)

    @classmethod
    def of(cls, rows: pa.Table) -> "Pairs":
        ids = rows[CONCEPT_IDS.name].combine_chunks()
        size_N = pc.list_value_length(ids).to_numpy(zero_copy_only=False).astype(np.int64)
        return cls(np.cumsum(size_N) - size_N, size_N, pc.list_flatten(ids).to_numpy())

    def least(self, value_M: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N,) the least value of each row."""
        return np.minimum.reduceat(value_M, self.start) if len(self.start) else value_M

    def keep_probability(self, p_E: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N,) that one of the row's concepts is drawn, each with its p."""
        lost_M = 1 - p_E[self.concept]
        return 1 - (np.multiply.reduceat(lost_M, self.start) if len(self.start) else lost_M)


@dataclass(frozen=True, kw_only=True)
class Draw:
    """A draw of each concept of a row, by seed, stage, and the concept's count in units of t."""

    seed: int
    stage: str
    weight: NDArray[np.float64]  # (E,)

    def of(self, rows: pa.Table, pairs: Pairs) -> NDArray[np.float64]:
        """(M,) u * weight of each pair, u in [0, 1): below t with probability min(1, t / weight).

        Rounding takes none up to its weight, so a concept of weight t or less always stays.
        """
        row_N = coin_hash(rows[UID.name], seed=self.seed, stage=self.stage, purpose="row")
        row_M = np.repeat(row_N, pairs.size)
        key_M2 = np.stack([row_M, pairs.concept.astype(np.uint64)], axis=1).astype(">u8")
        key_M = pa.Array.from_buffers(pa.binary(16), len(key_M2), [None, pa.py_buffer(key_M2)])
        u_M = coin(key_M, seed=self.seed, stage=self.stage, purpose="concept")
        return u_M * self.weight[pairs.concept]

    def probability(self, t: float) -> NDArray[np.float64]:
        """(E,) the probability that a draw of each concept is below t."""
        p_E = np.ones(len(self.weight))
        is_head = self.weight > t
        p_E[is_head] = t / self.weight[is_head]
        return p_E


def may_draw(rows: pa.Table) -> dict[str, NDArray[np.bool_]]:
    """For each reason not to draw, (N,) whether the row is free of it."""
    matched = pc.greater(pc.list_value_length(rows[CONCEPT_IDS.name]), 0).fill_null(False)
    may = {f"undefined:{CONCEPT_IDS.name}": matched.to_numpy()}
    if IMAGE_BYTES.name in rows.column_names:
        may = {f"undefined:{IMAGE_BYTES.name}": rows[IMAGE_BYTES.name].is_valid().to_numpy(), **may}
    if KEEP.name in rows.column_names:
        may = {"dropped_before": rows[KEEP.name].fill_null(False).to_numpy(), **may}
    return may


def drawing(rows: pa.Table) -> pa.Table:
    """The rows that draw."""
    return rows.filter(pa.array(np.logical_and.reduce([*may_draw(rows).values()])))
