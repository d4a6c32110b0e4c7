"""One round of k-means in fixed point, of one level and of a two-level tree."""

import heapq
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.uid import uniform
from clipmill.pipeline.dataset import State
from clipmill.stages.ops.vectors.centroids import Metric
from clipmill.stages.ops.vectors.matrices import as_matrix, blocks, unit_rows
from clipmill.stages.ops.vectors.nearest import fixed_scale, nearest, sums_by_group

# Shapes: N rows, D width of a vector, K centres, B rows of a block; P parents, S parents searched,
# C candidates of a row, R rounds, m nearest centres asked for.

STEPS = 2.0**30  # fixed-point steps in 1, for values of a unit vector


@dataclass(frozen=True, kw_only=True)
class Space:
    """The metric of means, and the fixed-point scales of sums, in steps in 1.

    Rows are always compared by distance: among unit vectors the nearest has the greatest cosine,
    and a length that float32 has rounded off 1 does not outweigh a small angle.

    The scales depend on the number of rows and their greatest value, not on the order of rows or
    shards; a sum over all rows cannot overflow.
    """

    metric: Metric = "cosine"
    steps: float = STEPS  # of a value
    square_steps: float = STEPS  # of a squared distance
    device: str = "cpu"  # where rows are compared; results do not depend on it

    @classmethod
    def of(
        cls, metric: Metric, rows: int, value: float, square: float, device: str = "cpu"
    ) -> Self:
        """Builds the space for a number of rows, their greatest value and squared length."""
        # Two rows are at most twice the greatest length apart.
        return cls(
            metric=metric,
            steps=fixed_scale(value, rows),
            square_steps=fixed_scale(4 * square, rows),
            device=device,
        )


UNIT = Space()


def in_training(train_fraction: float, rows: pa.Table) -> pa.Table:
    """Returns the rows, chosen by coin, on which centres are found."""
    return rows.filter(pa.array(uniform(rows["coin"].to_numpy()) < train_fraction))


def cell_sums(centre_KD: NDArray, rows: pa.Table, space: Space = UNIT) -> State:
    """Returns for each centre its rows' sum in fixed point, their number and squared distances."""
    return sums_of(space, centre_KD, as_matrix(rows["unit"]))


def sums_of(space: Space, centre_KD: NDArray, row_ND: NDArray) -> State:
    """Returns for each centre its rows' sum in fixed point, their number and squared distances."""
    row_ND = row_ND if len(row_ND) else centre_KD[:0]  # an empty table may lack its width
    index_N1, far_N1 = nearest(row_ND, centre_KD, "euclidean", device=space.device)
    index_N = index_N1.reshape(-1)  # also without centres
    far_N: NDArray = far_N1.reshape(-1)
    if space.metric == "euclidean":  # squares may exceed float32
        far_N = squared(row_ND, centre_KD, index_N)
    sum_KD, count_K = sums_by_group(row_ND, index_N, len(centre_KD), space.steps)
    far_K = far_sums(space, len(centre_KD), index_N, far_N)
    return {"sum_KD": sum_KD, "count_K": count_K, "far_K": far_K}


def far_sums(space: Space, centres: int, index_N: NDArray, far_N: NDArray) -> NDArray[np.int64]:
    """Returns (K,) the sum of the squared distances of each centre's rows to it, in fixed point."""
    fixed_N = np.rint(far_N.astype(np.float64) * space.square_steps).astype(np.int64)
    far_K = np.zeros(centres, np.int64)
    np.add.at(far_K, index_N, fixed_N)
    return far_K


def squared(row_ND: NDArray, centre_KD: NDArray, index_N: NDArray) -> NDArray[np.float64]:
    """Returns (N,) the squared distance of each row to its centre by index; 0 for equal vectors."""
    far_N = np.empty(len(row_ND))
    for part in blocks(len(row_ND)):
        difference_BD = row_ND[part].astype(np.float64) - centre_KD[index_N[part]]
        far_N[part] = np.vecdot(difference_BD, difference_BD)
    return far_N


def moved_centres(centre_KD: NDArray, sums: State, space: Space = UNIT) -> State:
    """Returns the mean of each centre's rows, by cosine at length 1, and how many centres moved."""
    count_K = sums["count_K"]
    mean_KD = means(centre_KD, sums["sum_KD"], count_K, space)
    fill(mean_KD, count_K, inertia(sums, space), space.metric)
    return {"centre_KD": mean_KD, "moved": np.array((mean_KD != centre_KD).any(axis=1).sum())}


def means(centre_KD: NDArray, sum_KD: NDArray, count_K: NDArray, space: Space) -> NDArray:
    """Returns (K, D) each centre's mean; the centre itself without rows, or if they cancel out."""
    wide_KD = sum_KD.astype(np.float64)
    if space.metric == "cosine":
        mean_KD = unit_rows(wide_KD)
    else:
        mean_KD = (wide_KD / (np.maximum(count_K, 1) * space.steps)[:, None]).astype(np.float32)
    undefined_K = (count_K == 0) | np.isnan(mean_KD).any(axis=1)
    mean_KD[undefined_K] = centre_KD[undefined_K]
    return mean_KD


def fill(mean_KD: NDArray, count_K: NDArray, inertia_K: NDArray, metric: Metric) -> None:
    """Gives each centre without rows half of the largest cluster, the first of equals.

    The halves start as far apart as the rows of the cluster lie. A share of the centre itself, as
    in faiss, leaves near-equal rows to the one centre that lies inside them.
    """
    empty = np.flatnonzero(count_K == 0).tolist()
    if not empty or len(empty) == len(count_K):
        return
    largest = [(-count, centre) for centre, count in enumerate(count_K.tolist()) if count]
    heapq.heapify(largest)
    sign_D = np.where(np.arange(mean_KD.shape[1]) % 2, 0.5, -0.5)
    spread_K = np.sqrt(inertia_K / np.maximum(count_K, 1) / mean_KD.shape[1])
    for centre in empty:
        count, other = heapq.heappop(largest)
        halves_2D = mean_KD[other] + spread_K[other] * np.stack([sign_D, -sign_D])
        mean_KD[[centre, other]] = unit_rows(halves_2D) if metric == "cosine" else halves_2D
        spread_K[[centre, other]] = spread_K[other] / 2  # quarters lie between the halves
        half = -count // 2
        heapq.heappush(largest, (count + half, other))
        heapq.heappush(largest, (-half, centre))


def inertia(sums: State, space: Space = UNIT) -> NDArray[np.float64]:
    """Returns (K,) the summed squared distances of each centre's rows; by cosine at length 1."""
    return sums["far_K"].astype(np.float64) / space.square_steps


def next_round(state: State, sums: State, space: Space) -> State:
    """Returns the state after a round: centres, how many moved, and rows and inertia by round."""
    totals = sums["count_K"].sum(), inertia(sums, space).sum()
    moved = moved_centres(state["centre_KD"], sums, space)
    return moved | {"round_R2": np.vstack([state["round_R2"], totals])}


def first_state(centre_KD: NDArray) -> State:
    return {"centre_KD": centre_KD, "moved": np.array(len(centre_KD)), "round_R2": np.empty((0, 2))}


def settled(space: Space, start_KD: NDArray, row_ND: NDArray, rounds: int) -> State:
    """Returns the state after `rounds` rounds in memory, or fewer once no centre moves."""
    state = first_state(start_KD)
    for number in range(rounds):
        if number and not state["moved"]:
            break
        state = next_round(state, sums_of(space, state["centre_KD"], row_ND), space)
    return state


SEARCHED = 8  # nearest parents of a row whose children it may belong to
PARENT = "parent"


@dataclass(frozen=True, kw_only=True)
class Tree:
    """Cluster centres, optionally under parents; the children of a parent are consecutive."""

    centre: NDArray  # (K, D)
    parent: NDArray | None = None  # (P, D)
    first: NDArray[np.int64] | None = None  # (P + 1,) the first child of each parent, and K
    device: str = "cpu"  # where rows are compared; results do not depend on it

    @classmethod
    def of(cls, parent_PD: NDArray, children: State, device: str) -> Self:
        """Builds the tree from the children that `split` found; leaves out parents without any."""
        order_K = np.argsort(children["parent_K"], kind="stable")
        kept_P, count_P = np.unique(children["parent_K"], return_counts=True)
        return cls(
            centre=children["centre_KD"][order_K],
            parent=parent_PD[kept_P],
            first=np.append(0, np.cumsum(count_P)),
            device=device,
        )

    @property
    def parent_of(self) -> NDArray[np.int64] | None:
        """Returns (K,) the number of each centre's parent; None in one level."""
        if self.first is None:
            return None
        return np.repeat(np.arange(len(self.first) - 1), np.diff(self.first))

    def nearest(self, row_ND: NDArray, m: int) -> NDArray[np.int32]:
        """Returns (N, m) each row's nearest centres, nearest first, -1 past the last that exists.

        In two levels they are the nearest among the children of the row's nearest parents.
        """
        index_Nm = np.full((len(row_ND), m), -1, np.int32)
        if not len(row_ND) or not len(self.centre):
            return index_Nm
        if self.parent is None or self.first is None:
            near_Nm = self._top_m(row_ND, self.centre, m)
            index_Nm[:, : near_Nm.shape[1]] = near_Nm
            return index_Nm
        searched = min(SEARCHED, len(self.parent))
        candidate_NC = np.full((len(row_ND), searched * m), -1, np.int32)
        parent_NS = self._top_m(row_ND, self.parent, searched)
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
            near = self._top_m(row_ND[row], self.centre[first:end], some)
            columns = place[:, None] * m + np.arange(some)
            candidate_NC[row[:, None], columns] = first + near
        return self._best(row_ND, np.sort(candidate_NC, axis=1), m)

    def _top_m(self, row_ND: NDArray, centre_KD: NDArray, m: int) -> NDArray[np.int32]:
        return nearest(row_ND, centre_KD, "euclidean", m, device=self.device)[0]

    def _best(self, row_ND: NDArray, candidate_NC: NDArray, m: int) -> NDArray[np.int32]:
        """Returns the m nearest of ascending candidates in float64, the first of equals."""
        far_NC = np.full(candidate_NC.shape, np.inf)
        for column in range(candidate_NC.shape[1]):
            some_N = candidate_NC[:, column] >= 0
            index = candidate_NC[some_N, column]
            far_NC[some_N, column] = squared(row_ND[some_N], self.centre, index)
        best_Nm = np.argsort(far_NC, axis=1, kind="stable")[:, :m]
        return np.take_along_axis(candidate_NC, best_Nm, axis=1)


def tree_sums(tree: Tree, space: Space, rows: pa.Table) -> State:
    """Returns for each centre its rows, and their squared distances summed in fixed point."""
    row_ND = as_matrix(rows["unit"])
    index_N = tree.nearest(row_ND, 1)[:, 0]
    far_N = squared(row_ND, tree.centre, index_N)
    count_K = np.bincount(index_N, minlength=len(tree.centre))
    return {"count_K": count_K, "far_K": far_sums(space, len(tree.centre), index_N, far_N)}
