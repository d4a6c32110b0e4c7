"""Centres by number, of one level or under parents, and which of them are nearest to a row."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.pipeline.dataset import State
from clipmill.stages.cluster._rounds import Space, far_sums, squared
from clipmill.stages.ops.nearest import nearest
from clipmill.stages.ops.vectors import as_matrix

# Shapes: N rows, D width of a vector, K centres, P parents, S parents searched, C candidates of a
# row, R rounds, m nearest centres asked for.

SEARCHED = 8  # parents nearest to a row, whose children it may belong to
PARENT = "parent"


@dataclass(frozen=True, kw_only=True)
class Tree:
    """Centres by number; where they have parents, the children of one stand side by side."""

    centre: NDArray  # (K, D)
    parent: NDArray | None = None  # (P, D)
    first: NDArray[np.int64] | None = None  # (P + 1,) the first child of each parent, and K
    device: str = "cpu"  # where rows are compared; no result hangs on it

    @classmethod
    def of(cls, parent_PD: NDArray, found: State, device: str) -> Self:
        """The tree of the children that `split` found; parents without any are left out."""
        order_K = np.argsort(found["parent_K"], kind="stable")
        kept_P, count_P = np.unique(found["parent_K"], return_counts=True)
        return cls(
            centre=found["centre_KD"][order_K],
            parent=parent_PD[kept_P],
            first=np.append(0, np.cumsum(count_P)),
            device=device,
        )

    @property
    def parent_of(self) -> NDArray[np.int64] | None:
        """(K,) the number of each centre's parent."""
        if self.first is None:
            return None
        return np.repeat(np.arange(len(self.first) - 1), np.diff(self.first))

    def nearest(self, row_ND: NDArray, m: int) -> NDArray[np.int32]:
        """(N, m) the nearest centres of each row, nearest first, -1 past the last that there is.

        Of two levels they are the nearest among the children of the row's nearest parents.
        """
        if self.parent is not None:
            return self._near_parents(row_ND, m)
        index_Nm = np.full((len(row_ND), m), -1, np.int32)
        if len(row_ND) and len(self.centre):
            found = self._few(row_ND, self.centre, m)
            index_Nm[:, : found.shape[1]] = found
        return index_Nm

    def _few(self, row_ND: NDArray, centre_KD: NDArray, m: int) -> NDArray[np.int32]:
        return nearest(row_ND, centre_KD, "euclidean", m, device=self.device)[0]

    def _near_parents(self, row_ND: NDArray, m: int) -> NDArray[np.int32]:
        assert self.parent is not None
        assert self.first is not None
        searched = min(SEARCHED, len(self.parent))
        candidate_NC = np.full((len(row_ND), searched * m), -1, np.int32)
        if not len(row_ND) or not searched:
            return np.full((len(row_ND), m), -1, np.int32)
        parent_NS = self._few(row_ND, self.parent, searched)
        order = np.argsort(parent_NS, axis=None, kind="stable")
        sorted_parent = parent_NS.reshape(-1)[order]
        cuts = np.flatnonzero(np.diff(sorted_parent)) + 1
        for start, stop in pairwise([0, *cuts.tolist(), len(order)]):
            row, place = np.divmod(order[start:stop], searched)
            parent = sorted_parent[start]
            first, end = self.first[parent : parent + 2]
            some = min(m, int(end - first))
            if not some:
                continue
            near = self._few(row_ND[row], self.centre[first:end], some)
            columns = place[:, None] * m + np.arange(some)
            candidate_NC[row[:, None], columns] = first + near
        return self._best(row_ND, np.sort(candidate_NC, axis=1), m)

    def _best(self, row_ND: NDArray, candidate_NC: NDArray, m: int) -> NDArray[np.int32]:
        """Of ascending candidates the m nearest in float64, the first of equals."""
        far_NC = np.full(candidate_NC.shape, np.inf)
        for column in range(candidate_NC.shape[1]):
            some_N = candidate_NC[:, column] >= 0
            index = candidate_NC[some_N, column]
            far_NC[some_N, column] = squared(row_ND[some_N], self.centre, index)
        best_Nm = np.argsort(far_NC, axis=1, kind="stable")[:, :m]
        return np.take_along_axis(candidate_NC, best_Nm, axis=1)


def tree_sums(tree: Tree, space: Space, rows: pa.Table) -> State:
    """For each centre, its rows and the sum of their squared distances to it, in fixed point."""
    row_ND = as_matrix(rows["unit"])
    index_N = tree.nearest(row_ND, 1)[:, 0]
    far_N = squared(row_ND, tree.centre, index_N)
    count_K = np.bincount(index_N, minlength=len(tree.centre))
    return {"count_K": count_K, "far_K": far_sums(space, len(tree.centre), index_N, far_N)}
