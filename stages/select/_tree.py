"""A tree over clusters, and the quota of each for a target: Vo et al.'s balanced sampling.

From the top, a node with target T gives each child min(x, its rows), with the whole x that brings
their sum F(x) nearest to T; of two as near, the greater. F rises with x, so x reaches r exactly
when T >= (F(r - 1) + F(r)) / 2. A child's quota is thus a step function of T that never falls, and
so is a leaf's as a function of the tree's target. The least target at which a row enters is that
formula applied level by level, from the row's place in its leaf up.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.uid import coin_hash, from_halves
from clipmill.pipeline.dataset import Context, State, Task
from clipmill.stages.ops.tables.combined import Combined
from clipmill.stages.ops.tables.rows import joined, put_table, put_text
from clipmill.stages.ops.vectors.centroids import Metric, read
from clipmill.stages.ops.vectors.matrices import as_matrix, from_matrix, unit_rows
from clipmill.stages.ops.vectors.nearest import nearest

# Shapes: C children and P parents of a level, K leaves, N rows; N points, D width of a vector, K
# clusters, L nodes of a level.

Whole = NDArray[np.int64]
TABLE, SUMMARY = "tree.parquet", "tree.json"


@dataclass(frozen=True)
class Level:
    """Nodes of one level and the parents above them."""

    parent: NDArray[np.int32]  # (C,)
    rows: Whole  # (C,)
    parents: int  # P

    @cached_property
    def _by_size(self) -> tuple[Whole, Whole, Whole]:
        """Returns the children sorted by parent, then rows: a key of both, the cumulative rows, and
        the first index of each parent."""
        order_C = np.lexsort((self.rows, self.parent))
        parent_C = self.parent[order_C].astype(np.int64)
        key_C = parent_C * self._stride + self.rows[order_C]
        before = np.append(0, np.cumsum(self.rows[order_C]))
        return key_C, before, np.searchsorted(parent_C, np.arange(self.parents + 1))

    @property
    def _stride(self) -> int:
        return int(self.rows.max(initial=0)) + 1

    def taken(self, parent_N: Whole, x_N: Whole) -> Whole:
        """Returns (N,) the sum of min(x, its rows) over the children of each parent.

        x is at most the rows of the largest child of the level.
        """
        key_C, before, begin = self._by_size
        smaller_N = np.searchsorted(key_C, parent_N * self._stride + x_N)
        whole_N = before[smaller_N] - before[begin[parent_N]]
        return whole_N + (begin[parent_N + 1] - smaller_N) * x_N

    def least_target(self, child_N: Whole, wanted_N: Whole) -> Whole:
        """Returns (N,) the least target of the parent that gives a child `wanted_N` >= 1 rows."""
        parent_N = self.parent[child_N].astype(np.int64)
        sums_N = self.taken(parent_N, wanted_N - 1) + self.taken(parent_N, wanted_N)
        return (sums_N + 1) // 2

    def quotas(self, target_P: Whole) -> Whole:
        """Returns (C,) each child's part of its parent's target (at most the parent's rows)."""
        parent_P = np.arange(self.parents)
        low_P = np.zeros(self.parents, np.int64)  # reached
        high_P = np.zeros(self.parents, np.int64)  # the largest child's rows
        np.maximum.at(high_P, self.parent, self.rows)
        while (low_P < high_P).any():
            middle_P = (low_P + high_P + 1) // 2
            sums_P = self.taken(parent_P, middle_P - 1) + self.taken(parent_P, middle_P)
            reached_P = (sums_P <= 2 * target_P) & (low_P < high_P)
            high_P = np.where(reached_P | (low_P == high_P), high_P, middle_P - 1)
            low_P = np.where(reached_P, middle_P, low_P)
        return np.minimum(low_P[self.parent], self.rows)

    def sums(self, value_C: Whole) -> Whole:
        """Returns (P,) the sum of the children's values."""
        sum_P = np.zeros(self.parents, np.int64)
        np.add.at(sum_P, self.parent, value_C)
        return sum_P


@dataclass(frozen=True)
class Tree:
    """Levels from the leaves up; the last has one parent, the root."""

    levels: tuple[Level, ...]

    @classmethod
    def over(
        cls, rows_K: NDArray, parents: Sequence[NDArray[np.int32]], nodes: Sequence[int]
    ) -> Self:
        """Builds the tree over leaves with `rows_K` rows.

        `nodes` are the sizes of the levels above the leaves, and `parents` the node of each leaf,
        then of each node of the level above, and so on; the root is above the last.
        """
        levels: list[Level] = []
        rows_C = rows_K
        for parent_C, above in zip(
            [*parents, np.zeros([len(rows_K), *nodes][-1], np.int32)], [*nodes, 1], strict=True
        ):
            levels.append(Level(parent_C, rows_C, above))
            rows_C = levels[-1].sums(rows_C)
        return cls(tuple(levels))

    @property
    def rows(self) -> int:
        return int(self.levels[0].rows.sum())

    def least_target(self, leaf_N: Whole, place_N: Whole) -> Whole:
        """Returns (N,) the least target that takes a row, by its place in its leaf, from 1."""
        node_N, target_N = leaf_N, place_N
        for level in self.levels:
            target_N = level.least_target(node_N, target_N)
            node_N = level.parent[node_N].astype(np.int64)
        return target_N

    def quotas(self, target: int) -> list[Whole]:
        """Returns the quota of every node, by level from the leaves up, the root's target last."""
        quotas = [np.array([target])]
        for level in reversed(self.levels):
            quotas.append(level.quotas(quotas[-1]))
        return quotas[::-1]

    def paths(self, leaf_N: Whole) -> NDArray[np.int32]:
        """Returns (N, levels) each leaf's nodes from below the root down to the leaf itself."""
        path: list[NDArray] = [leaf_N]
        for level in self.levels[:-1]:
            path.append(level.parent[path[-1]])
        return np.stack(path[::-1], axis=1).astype(np.int32)


def put_tree(tree: Tree, target: int, task: Task) -> dict[str, int]:
    """Stores out/tree.parquet, every node, and out/tree.json: the target and what was kept."""
    quotas = tree.quotas(target)
    parents: list[pa.Array] = [pa.array(level.parent, pa.int32()) for level in tree.levels]
    sizes = [*map(len, quotas)]
    kept = [quotas[0]]
    for level in tree.levels:
        kept.append(level.sums(kept[-1]))
    rows = [*(level.rows for level in tree.levels), np.array([tree.rows])]
    nodes = {
        "level": pa.array(np.repeat(np.arange(len(sizes)), sizes), pa.int32()),
        "node": pa.array(np.concatenate([*map(np.arange, sizes)]), pa.int32()),
        "parent": pa.concat_arrays([*parents, pa.nulls(1, pa.int32())]),
        "rows": pa.array(np.concatenate(rows), pa.int64()),
        "quota": pa.array(np.concatenate(quotas), pa.int64()),
        "kept": pa.array(np.concatenate(kept), pa.int64()),
    }
    summary = {"rows": tree.rows, "asked": target, "kept": int(kept[-1][0])}
    put_table(TABLE, pa.table(nodes), task)
    put_text(SUMMARY, json.dumps(summary), task)
    return summary


PART = 8192  # points in one task
COLUMNS = 64  # summed at a time


@dataclass(frozen=True)
class Points(Combined):
    """Vectors in pieces that workers load themselves: a task carries none of the first level."""

    load: Callable[[], NDArray[np.float32]]
    count: int

    def __len__(self) -> int:
        return -(-self.count // PART)

    def table(self, index: int) -> pa.Table:
        return pa.table({"vector": from_matrix(self.load()[index * PART : (index + 1) * PART])})


@lru_cache(maxsize=1)  # a worker needs the same ones for every piece and round
def of_clusters(
    folder: str | None, setting: str, where: str, digest: str
) -> tuple[NDArray[np.float32], Metric]:
    """Returns the centroids, (K, D), of length 1 or 0 for a cosine metric, and the metric.

    `digest`, of the file that the setting names, is a key of the cache only.
    """
    stored = read(folder, setting, where)
    is_cosine = stored.metric == "cosine"
    return np.nan_to_num(unit_rows(stored.vector)) if is_cosine else stored.vector, stored.metric


def clusters_alone(
    folder: str | None, setting: str, where: str, digest: str
) -> NDArray[np.float32]:
    return of_clusters(folder, setting, where, digest)[0]


def itself(vector_ND: NDArray) -> NDArray[np.float32]:
    return vector_ND


def parents_of(
    load: Callable[[], NDArray[np.float32]],
    metric: Metric,
    nodes: tuple[int, ...],
    rounds: int,
    ctx: Context,
) -> list[NDArray]:
    """Returns each point's node among `nodes[0]`, then the node of each of these, and so on up.

    Each level starts from the points of the level below whose numbers hash lowest.
    """
    parents, worker = [], ctx.worker
    for height, count in enumerate(nodes):
        ctx.say(f"grouping into {count} nodes")
        points = Points(load, len(load()))
        number_N2 = np.stack([np.full(points.count, height), np.arange(points.count)], axis=1)
        number = from_halves(number_N2.astype(np.uint64))
        coin_N = coin_hash(number, seed=worker.seed, stage=worker.stage, purpose="levels")
        first_L = coin_N.argsort(kind="stable")[:count]
        start = {"node_LD": load()[first_L], "moved": np.array(count)}

        def step(state: State, number: int, points=points) -> State:
            near = ctx.reduce(partial(nearest_nodes, state["node_LD"]), points, joined)
            return moved_nodes(points.load(), state["node_LD"], near, metric)

        still = ctx.iterate(start, step, rounds, until=lambda state: not state["moved"])
        node_LD = still["node_LD"]
        near = ctx.reduce(partial(nearest_nodes, node_LD), points, joined)
        parents.append(near["node_N"])
        load = partial(itself, node_LD)
    return parents


def nearest_nodes(node_LD: NDArray, points: pa.Table) -> State:
    """Returns (N,) the node nearest to each point, and (N,) their squared distance.

    For vectors of length 1 that is the node of the greatest cosine.
    """
    index_N1, far_N1 = nearest(as_matrix(points["vector"]), node_LD, "euclidean")
    return {"node_N": index_N1[:, 0], "far_N": far_N1[:, 0]}


def moved_nodes(
    point_ND: NDArray[np.float32], node_LD: NDArray, near: State, metric: Metric
) -> State:
    """Returns the mean of each node's points, and how many nodes moved.

    A node without points moves onto the point that is farthest from its own node.
    """
    count = len(node_LD)
    node_N: NDArray = near["node_N"]
    far_N: NDArray = near["far_N"]
    mean_LD = sums(point_ND, node_N, count)
    size_L = np.bincount(node_N, minlength=count)
    if metric == "cosine":
        new_LD = unit_rows(mean_LD)
    else:
        with np.errstate(invalid="ignore"):
            new_LD = (mean_LD / size_L[:, None]).astype(np.float32)
    undefined_L = np.isnan(new_LD).any(axis=1)  # no points, or points that cancel out
    new_LD[undefined_L] = node_LD[undefined_L]
    empty_E = np.flatnonzero(size_L == 0)
    farthest_E = np.argsort(-far_N, kind="stable")[: len(empty_E)]
    farthest_E = farthest_E[far_N[farthest_E] > 0]
    new_LD[empty_E[: len(farthest_E)]] = point_ND[farthest_E]
    return {"node_LD": new_LD, "moved": np.array((new_LD != node_LD).any(axis=1).sum())}


def sums(point_ND: NDArray[np.float32], node_N: NDArray, count: int) -> NDArray[np.float64]:
    """Returns (L, D) the sum of each node's points, in their order; 0 for a node without points."""
    order_N = np.argsort(node_N, kind="stable")
    some_L, start_L = np.unique(node_N[order_N], return_index=True)
    sum_LD = np.zeros((count, point_ND.shape[1]))
    for left in range(0, point_ND.shape[1], COLUMNS):
        part = slice(left, left + COLUMNS)
        sum_LD[some_L, part] = np.add.reduceat(
            point_ND[order_N, part].astype(np.float64), start_L, axis=0
        )
    return sum_LD
