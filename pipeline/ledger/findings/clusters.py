"""Maps the clusters of a pool: positions in a plane, rows kept by each select, and example rows."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from clipmill.metadata.outputs import Outputs
from clipmill.metadata.schema import KEEP, UID
from clipmill.metadata.stats import wilson_bounds
from clipmill.metadata.uid import coin_hash
from clipmill.pipeline.ledger.findings.cluster_counts import (
    MOST_ENDS,
    DrawnRow,
    OverSize,
    Tally,
    over_size,
)
from clipmill.pipeline.ledger.rows.columns import line_of
from clipmill.pipeline.ledger.rows.stored import artifacts, tables
from clipmill.pipeline.ledger.selection.causes import is_end
from clipmill.pipeline.planning.planned import Binding, PlannedStage
from clipmill.pipeline.run_folder.state import RunState

# Shapes: B vectors of a block, K of all blocks, D width of a vector.

Blocks = Callable[[], Iterable[tuple[NDArray[np.float32], NDArray[np.int64]]]]
NEAR = 1 - 1e-9  # entries from this share of the largest on count as equally large


@dataclass(frozen=True)
class Plane:
    """Each vector's position in a plane, and the share of variance on each axis."""

    place: NDArray[np.float64]  # (K, 2)
    share: tuple[float, float]


def plane(blocks: Blocks) -> Plane:
    """Projects (K, D) vectors, less their mean, on two principal axes; 0 where there is no axis.

    `blocks` gives the vectors and their weights anew on each call: only a block and a D * D matrix
    are held. Weights keep clusters of few rows from turning an axis; if all weights are 0, all
    count alike. The first of the largest entries of each axis is positive.
    Source: principal components (Pearson 1901), in float64.
    Error: axes of equal variance are arbitrary.
    """
    total, rows, width = 0.0, 0, 0
    for vector_BD, weight_B in blocks():
        total += float(weight_B.sum())
        rows += len(vector_BD)
        width = vector_BD.shape[1]
    if not rows or not width:
        return Plane(np.zeros((rows, 2)), (0.0, 0.0))
    even = 0.0 if total else 1.0  # added to each weight
    total = total or float(rows)
    mean_D, spread_DD = np.zeros(width), np.zeros((width, width))
    for vector_BD, weight_B in blocks():
        mean_D += (weight_B + even) @ vector_BD.astype(np.float64) / total
    for vector_BD, weight_B in blocks():
        from_mean_BD = vector_BD - mean_D
        spread_DD += (from_mean_BD * (weight_B + even)[:, None]).T @ from_mean_BD / total
    variance_D, axis_DD = np.linalg.eigh(spread_DD)
    axis_D2 = axis_DD[:, ::-1][:, :2]
    variance = np.maximum(variance_D[::-1][:2], 0.0)
    largest_2 = (np.abs(axis_D2) >= NEAR * np.abs(axis_D2).max(axis=0)).argmax(axis=0)
    axis_D2 = axis_D2 * np.where(axis_D2[largest_2, range(axis_D2.shape[1])] < 0, -1.0, 1.0)
    place_KA = np.concatenate([(vector_BD - mean_D) @ axis_D2 for vector_BD, _ in blocks()])
    place_K2 = np.zeros((rows, 2))
    place_K2[:, : place_KA.shape[1]] = place_KA
    share_2 = np.zeros(2)  # one axis of vectors of one number
    share_2[: len(variance)] = variance / (np.trace(spread_DD) or 1.0)
    return Plane(place_K2, (float(share_2[0]), float(share_2[1])))


# Shapes: K clusters, M of them that have rows, E select stages, D width of a centroid.

DRAWN = 2_000  # the largest clusters
EXTREME = 20  # the most and the least pruned clusters
SIZES = 10  # groups of clusters by size
MOST_ROWS = 2_000_000  # largest pool whose sizes are varied: columns of all rows are held
BLOCK = 4096  # centroids held at a time


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """One cluster: its rows, those kept by each select, and its position in the plane.

    `spread` is the mean squared distance of its rows to the centroid, by the clustering: less is
    denser. `few` are example rows, chosen by hash, each with every select's verdict.
    """

    number: int
    rows: int
    kept: tuple[int, ...]
    spread: float | None
    x: float
    y: float
    few: tuple[DrawnRow, ...]


@dataclass(frozen=True, kw_only=True)
class SizeGroup:
    """Clusters of similar size: how many, the largest and smallest size, rows, and rows kept."""

    clusters: int
    largest: int
    smallest: int
    rows: int
    kept: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """The clusters that a select prunes most and least, the extreme ones first.

    Ranked by the conservative end of the 95 % interval of the share kept (Wilson): a cluster of a
    few rows is neither.
    """

    stage: str
    most: tuple[Cluster, ...]
    least: tuple[Cluster, ...]


@dataclass(frozen=True, kw_only=True)
class ClusterMap:
    """One complete clustering of `rows` rows; `without` others have no cluster.

    Of `clusters`, `met` have rows; `drawn` holds the largest and the `pruned`, largest first, and
    `undrawn_rows` counts the rows of the others. `ends` are the select stages of the counts, with
    the rows kept in all clusters; selects that depend on the clusters come first. `pruned` and
    `over` are of these, or of the first select if none depends on them. `variance` is the share on
    each axis. `is_too_large`: no size was varied.
    """

    stage: str
    clusters: int
    met: int
    rows: int
    without: int
    variance: tuple[float, float]
    ends: dict[str, int]
    drawn: tuple[Cluster, ...]
    undrawn_rows: int
    sizes: tuple[SizeGroup, ...]
    pruned: tuple[Pruned, ...]
    over: tuple[OverSize, ...]
    is_too_large: bool


def cluster_maps(state: RunState) -> list[ClusterMap]:
    """Returns a map for every complete stage that names rows' clusters and stores centroids."""
    answers = []
    for name, stage in state.stages.items():
        files = artifacts(stage, "centroids")
        named = [column.name for column in stage.planned.stage.writes if column.names == "cluster"]
        if files and named and stage.shards:
            answers.append(_map(state, name, (name, named[0]), next(iter(files.values()))))
    return answers


def _map(state: RunState, name: str, cluster: Binding, file: str) -> ClusterMap:
    outputs = Outputs(state.stages[name].folder)
    ends = ends_of(state, name)
    deciding = [end for end in ends if stands_on(state, end.name, name)] or ends[:1]
    with outputs.parquet(file) as table:
        sizes = table.read(["rows", "inertia"])
    tally = _counted(state, name, cluster, [end.name for end in ends], len(sizes))
    rows_K, kept_EK = tally.rows_K, tally.kept_EK
    order_M = np.argsort(-rows_K, kind="stable")[: np.count_nonzero(rows_K)]
    group_K = np.full(len(rows_K), -1, np.int8)
    split = np.array_split(order_M, min(SIZES, len(order_M))) if len(order_M) else []
    for index, group in enumerate(split):
        group_K[group] = index
    extremes = {end.name: _extremes(rows_K, kept_EK[ends.index(end)], order_M) for end in deciding}
    shown = dict.fromkeys(order_M[:DRAWN].tolist())
    shown |= dict.fromkeys(n for most, least in extremes.values() for n in (*most, *least))

    def blocks() -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        begin = 0
        with outputs.parquet(file) as table:
            for batch in table.iter_batches(BLOCK, columns=["centroid"]):
                centroid = batch["centroid"].flatten().to_numpy(zero_copy_only=False)
                yield centroid.reshape(len(batch), -1), rows_K[begin : begin + len(batch)]
                begin += len(batch)

    projected = plane(blocks)
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 of a cluster without rows
        spread_K = sizes["inertia"].to_numpy() / sizes["rows"].to_numpy()
    by_number = {
        index: Cluster(
            number=index,
            rows=int(rows_K[index]),
            kept=tuple(kept_EK[:, index].tolist()),
            spread=float(spread_K[index]) if np.isfinite(spread_K[index]) else None,
            x=float(projected.place[index, 0]),
            y=float(projected.place[index, 1]),
            few=tally.few(index),
        )
        for index in shown
    }
    is_too_large = int(rows_K.sum()) + tally.without > MOST_ROWS
    varied = [] if is_too_large or not split else deciding
    over = [over_size(state, end, cluster, group_K) for end in varied]
    return ClusterMap(
        stage=name,
        clusters=len(rows_K),
        met=len(order_M),
        rows=int(rows_K.sum()),
        without=tally.without,
        variance=projected.share,
        ends={end.name: int(kept_EK[i].sum()) for i, end in enumerate(ends)},
        drawn=tuple(sorted(by_number.values(), key=lambda c: (-c.rows, c.number))),
        undrawn_rows=int(rows_K.sum()) - sum(c.rows for c in by_number.values()),
        sizes=tuple(
            SizeGroup(
                clusters=len(group),
                largest=int(rows_K[group].max()),
                smallest=int(rows_K[group].min()),
                rows=int(rows_K[group].sum()),
                kept=tuple(kept_EK[:, group].sum(axis=1).tolist()),
            )
            for group in split
        ),
        pruned=tuple(
            Pruned(
                stage=end,
                most=tuple(by_number[index] for index in most),
                least=tuple(by_number[index] for index in least),
            )
            for end, (most, least) in extremes.items()
        ),
        over=tuple(size for size in over if size),
        is_too_large=is_too_large,
    )


def ends_of(state: RunState, name: str) -> list[PlannedStage]:
    """Returns up to MOST_ENDS final selects over a stage's rows, those that depend on it first."""
    root = state.plan.stages[name].root
    done = state.row_stages
    ends = [planned for planned in done if planned.root == root and is_end(planned, done)]
    return sorted(ends, key=lambda end: not stands_on(state, end.name, name))[:MOST_ENDS]


def stands_on(state: RunState, end: str, name: str) -> bool:
    """Returns whether stage `end` depends on stage `name`, directly or not."""
    return name in line_of(state.plan, end, attrgetter("needs"))


def _counted(state: RunState, name: str, cluster: Binding, ends: list[str], clusters: int) -> Tally:
    """Counts all rows by cluster, in one pass."""
    bound = {"cluster": cluster, **{f"kept {end}": (end, KEEP.name) for end in ends}}
    tally = Tally(clusters, len(ends))
    for shard, table in enumerate(tables(state, state.plan.stages[name].root, bound)):
        bits_N = coin_hash(table[UID.name], seed=state.plan.seed, stage=name, purpose="map")
        tally.count(shard, table["cluster"], [table[f"kept {end}"] for end in ends], bits_N)
    return tally


def _extremes(
    rows_K: NDArray[np.int64], kept_K: NDArray[np.int64], order_M: NDArray[np.int64]
) -> tuple[list[int], list[int]]:
    """Returns up to EXTREME clusters most pruned and as many least pruned, without overlap."""
    rows_M = rows_K[order_M]
    low_M, high_M = wilson_bounds(kept_K[order_M] / rows_M, rows_M.astype(np.float64))
    most = order_M[np.argsort(high_M, kind="stable")]
    least = order_M[np.argsort(-low_M, kind="stable")]
    count = min(EXTREME, len(order_M) // 2)
    chosen = set(most[:count].tolist())
    return most[:count].tolist(), [n for n in least.tolist() if n not in chosen][:count]
