"""Clusters of two levels: centres under parents, found a parent at a time, searched near a row."""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.dataset import Context, Shards, State
from stages.cluster._rounds import Space, far_sums, in_training, settled, squared
from stages.cluster._start import in_memory
from stages.ops.nearest import nearest, nearest_centre
from stages.ops.vectors import as_matrix, from_matrix

# Shapes: N rows, D width of a vector, K centres, P parents, S parents searched, C candidates of a
# row, R rounds, m nearest centres asked for.

SEARCHED = 8  # parents nearest to a row, whose children it may belong to
LEAST_PARTITIONS = 4
PARENT = "parent"


@dataclass(frozen=True, kw_only=True)
class Tree:
    """Centres by number; where they have parents, the children of one stand side by side."""

    centre: NDArray  # (K, D)
    parent: NDArray | None = None  # (P, D)
    first: NDArray[np.int64] | None = None  # (P + 1,) the first child of each parent, and K

    @classmethod
    def of(cls, parent_PD: NDArray, found: State) -> Self:
        """The tree of the children that `split` found; parents without any are left out."""
        order_K = np.argsort(found["parent_K"], kind="stable")
        kept_P, count_P = np.unique(found["parent_K"], return_counts=True)
        return cls(
            centre=found["centre_KD"][order_K],
            parent=parent_PD[kept_P],
            first=np.append(0, np.cumsum(count_P)),
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
            found = nearest(row_ND, self.centre, "euclidean", m)[0]
            index_Nm[:, : found.shape[1]] = found
        return index_Nm

    def _near_parents(self, row_ND: NDArray, m: int) -> NDArray[np.int32]:
        assert self.parent is not None
        assert self.first is not None
        searched = min(SEARCHED, len(self.parent))
        candidate_NC = np.full((len(row_ND), searched * m), -1, np.int32)
        if not len(row_ND) or not searched:
            return np.full((len(row_ND), m), -1, np.int32)
        parent_NS = nearest(row_ND, self.parent, "euclidean", searched)[0]
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
            near = nearest(row_ND[row], self.centre[first:end], "euclidean", some)[0]
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


def shared_out(clusters: int, rows_P: NDArray) -> NDArray[np.int64]:
    """(P,) children of each parent: one where it has rows, the others in proportion to these."""
    one_P = np.minimum(rows_P, 1)
    left = max(0, clusters - int(one_P.sum()))
    until_P = np.cumsum(rows_P)
    total = max(1, int(rows_P.sum()))
    # Whole numbers of Python's: a product of rows and clusters may pass 64 bits.
    ends_P = np.array([left * until // total for until in until_P.tolist()], np.int64)
    return np.minimum(one_P + np.diff(ends_P, prepend=0), rows_P)


def split(
    ctx: Context,
    rows: Shards,
    partitions: int,
    space: Space,
    parent_PD: NDArray,
    children_P: NDArray,
    start: str,
    rounds: int,
    train_fraction: float,
) -> State:
    """The children of every parent, each found among the training rows nearest to that parent.

    A parent's rows meet in one partition, in memory, for all rounds: what is stored of them is
    written once and read once.
    """
    ctx.say("bringing the rows of each parent together")
    with_parent = partial(under_parent, parent_PD, train_fraction)
    together = ctx.shuffle(ctx.map_shards(with_parent, rows), PARENT, partitions)
    ctx.say("splitting clusters")
    settings = {"start": start, "seed": ctx.worker.seed, "stage": ctx.worker.stage}
    found = ctx.reduce(
        partial(children_of, children_P, space, rounds, settings), together, merge_children
    )
    ctx.drop(together)
    return found


def under_parent(parent_PD: NDArray, train_fraction: float, rows: pa.Table) -> pa.Table:
    """The training rows, and the parent of each."""
    rows = in_training(train_fraction, rows)
    row_ND = as_matrix(rows["unit"])
    if not len(rows):  # of a shard whose lists say no width
        rows = rows.set_column(rows.column_names.index("unit"), "unit", from_matrix(parent_PD[:0]))
    return rows.append_column(PARENT, pa.array(nearest_centre(row_ND, parent_PD, "euclidean")))


def children_of(
    children_P: NDArray, space: Space, rounds: int, settings: dict[str, Any], rows: pa.Table
) -> State:
    """The centres under each parent of a partition, and rows and inertia by round."""
    parent_N = rows[PARENT].to_numpy()
    order_N = np.argsort(parent_N, kind="stable")
    cuts = np.flatnonzero(np.diff(parent_N[order_N])) + 1
    width = rows.schema.field("unit").type.list_size
    parents, centres, by_round = [], [np.empty((0, width), np.float32)], []
    for some in np.split(order_N, cuts) if len(order_N) else []:
        parent = int(parent_N[some[0]])
        mine = rows.take(pa.array(some))
        start_KD = in_memory(mine, int(children_P[parent]), parent=parent, **settings)
        state = settled(space, start_KD, as_matrix(mine["unit"]), rounds)
        parents.append(np.full(len(start_KD), parent))
        centres.append(state["centre_KD"])
        last = rounds - len(state["round_R2"])  # it stands still from there on
        by_round.append(np.pad(state["round_R2"], ((0, last), (0, 0)), mode="edge"))
    return {
        "parent_K": np.concatenate(parents or [np.empty(0, np.int64)]),
        "centre_KD": np.concatenate(centres),
        "parent_P": np.array(list(dict.fromkeys(parent for one in parents for parent in one[:1]))),
        "round_PR2": np.array(by_round).reshape(len(by_round), rounds, 2),
    }


def merge_children(a: State, b: State) -> State:
    return {name: np.concatenate([a[name], b[name]]) for name in a}


def inertia_by_round(found: State) -> NDArray[np.float64]:
    """(R, 2) rows and inertia of all parents' children at the begin of each round."""
    by_parent_PR2 = found["round_PR2"][np.argsort(found["parent_P"], kind="stable")]
    return by_parent_PR2.sum(axis=0)
