"""The upper levels of a tree: k-means of the centroids of clusters, then of those, and so on.

Points are few beside rows, so the sums are taken in one place, in the order of the points; workers
find the nearest node of each. Vectors are stored in float32; means and near-ties are in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.uid import coin_hash, from_halves
from clipmill.pipeline.dataset import Context, State
from clipmill.stages.ops.centroids import Metric, read
from clipmill.stages.ops.combined import Combined
from clipmill.stages.ops.nearest import nearest
from clipmill.stages.ops.states import joined
from clipmill.stages.ops.vectors import as_matrix, from_matrix, unit_rows

# Shapes: N points, D width of a vector, K clusters, L nodes of a level.

PART = 8192  # points of one piece of work
COLUMNS = 64  # of a sum at a time


@dataclass(frozen=True)
class Points(Combined):
    """Vectors in pieces, which workers load themselves: a task carries none of the first level."""

    load: Callable[[], NDArray[np.float32]]
    count: int

    def __len__(self) -> int:
        return -(-self.count // PART)

    def table(self, index: int) -> pa.Table:
        return pa.table({"vector": from_matrix(self.load()[index * PART : (index + 1) * PART])})


@lru_cache(maxsize=1)  # a worker asks for the same ones with every piece and round
def of_clusters(
    folder: str | None, setting: str, where: str, digest: str
) -> tuple[NDArray[np.float32], Metric]:
    """The centroids, (K, D), those of a cosine metric at length 1 or 0, and the metric.

    The digest is that of the file that the setting names.
    """
    held = read(folder, setting, where)
    is_cosine = held.metric == "cosine"
    return np.nan_to_num(unit_rows(held.vector)) if is_cosine else held.vector, held.metric


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
    """The node of each point among `nodes[0]`, then the node of each of these, and so on up.

    Each level starts from the points of the one below whose numbers hash lowest.
    """
    parents = []
    for height, count in enumerate(nodes):
        ctx.say(f"grouping into {count} nodes")
        points = Points(load, len(load()))
        first_L = coins(len(load()), height, ctx).argsort(kind="stable")[:count]
        start = {"node_LD": load()[first_L], "moved": np.array(count)}

        def step(state: State, number: int, points=points) -> State:
            near = ctx.reduce(partial(nearest_nodes, state["node_LD"]), points, joined)
            return moved_nodes(points.load(), state["node_LD"], near, metric)

        end = ctx.iterate(start, step, rounds, until=lambda state: not state["moved"])
        node_LD = end["node_LD"]
        near = ctx.reduce(partial(nearest_nodes, node_LD), points, joined)
        parents.append(near["node_N"])
        load = partial(itself, node_LD)
    return parents


def coins(count: int, height: int, ctx: Context) -> NDArray[np.uint64]:
    """(N,) 64 uniform bits of each point of a level, by its number."""
    number_N2 = np.stack([np.full(count, height), np.arange(count)], axis=1).astype(np.uint64)
    worker = ctx.worker
    return coin_hash(from_halves(number_N2), seed=worker.seed, stage=worker.stage, purpose="levels")


def nearest_nodes(node_LD: NDArray, points: pa.Table) -> State:
    """(N,) the node nearest to each point, and (N,) their squared distance.

    Of vectors at length 1 that is the node of the greatest cosine.
    """
    index_N1, far_N1 = nearest(as_matrix(points["vector"]), node_LD, "euclidean")
    return {"node_N": index_N1[:, 0], "far_N": far_N1[:, 0]}


def moved_nodes(
    point_ND: NDArray[np.float32], node_LD: NDArray, near: State, metric: Metric
) -> State:
    """The mean of each node's points, and how many nodes moved.

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
    """(L, D) the sum of each node's points, in their order; 0 without any."""
    order_N = np.argsort(node_N, kind="stable")
    some_L, start_L = np.unique(node_N[order_N], return_index=True)
    sum_LD = np.zeros((count, point_ND.shape[1]))
    for left in range(0, point_ND.shape[1], COLUMNS):
        part = slice(left, left + COLUMNS)
        sum_LD[some_L, part] = np.add.reduceat(
            point_ND[order_N, part].astype(np.float64), start_L, axis=0
        )
    return sum_LD
