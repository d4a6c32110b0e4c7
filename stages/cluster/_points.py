"""Turns rows into points for k-means, and assigns them to clusters."""

from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.schema import (
    CENTROID_COSINE,
    CLUSTER_ID,
    IDENTITY,
    UID,
    Column,
)
from clipmill.pipeline.dataset import Context, Inputs, Shards
from clipmill.pipeline.errors import StageError
from clipmill.stages.cluster._rounds import Space, Tree
from clipmill.stages.cluster._split import merge_surveyed, surveyed
from clipmill.stages.ops.tables.rows import DROPPED, dropped_before, with_reason
from clipmill.stages.ops.vectors import centroids
from clipmill.stages.ops.vectors.centroids import Metric
from clipmill.stages.ops.vectors.matrices import (
    as_matrix,
    blocks,
    from_matrix,
    refuse_column,
    row_dot,
    unit_rows,
)

# Shapes: N rows, D width of a vector, m nearest centres.

NEAREST_CLUSTERS = Column(
    "nearest_clusters", pa.list_(pa.int32()), "0 up", "Nearest cluster centres, nearest first."
)
NEAREST_COSINES = Column(
    "nearest_cosines", pa.list_(pa.float32()), "cosine", "Cosine to each of them."
)
REASONS = (DROPPED, "no_embedding", "zero_or_nan_embedding", "non_finite_embedding")


def points_of(
    column: str,
    metric: Metric,
    coins: Callable,
    width: int | None,
    model: str | None,
    shard: pa.Table,
) -> pa.Table:
    """Returns the rows to cluster: their identity, coin, and `unit`, the vector as compared.

    StageError if their width is not that of given centroids, or if more than a tenth of those that
    `model` made are unusable.
    """
    row_ND, defined_N, reason = _points(column, metric, shard)
    missing = pc.is_in(reason, pa.array([DROPPED, "no_embedding"]))
    refuse_column(missing.to_numpy(zero_copy_only=False), ~defined_N, column, model)
    if width is not None and row_ND.shape[1] != width and defined_N.any():
        found = f"centroids {width} wide, and embeddings {row_ND.shape[1]} wide"
        do = f"name centroids of the column '{column}'"
        raise StageError(found, "cluster.kmeans, key `centroids`", do)
    rows = shard.select(IDENTITY)
    rows = rows.append_column("coin", pa.array(coins(shard[UID.name])))
    rows = rows.append_column("unit", from_matrix(row_ND, ~defined_N))
    return rows if defined_N.all() else rows.filter(pa.array(defined_N))


def _points(
    column: str, metric: Metric, shard: pa.Table
) -> tuple[NDArray[np.float32], NDArray[np.bool_], pa.Array]:
    """Returns (N, D) vectors as compared, (N,) which are valid, and why others are not."""
    row_ND = as_matrix(shard[column])
    if not row_ND.shape[1]:  # lists without a width, none of them valid
        row_ND = np.full((len(row_ND), 1), np.nan, np.float32)
    if metric == "cosine":
        row_ND, why = unit_rows(row_ND), "zero_or_nan_embedding"
    else:
        why = "non_finite_embedding"
    bad_N = ~np.isfinite(row_ND).all(axis=1)
    undefined = pc.make_struct(dropped_before(shard), shard[column].is_null(), pa.array(bad_N))
    reason = pc.case_when(undefined, DROPPED, "no_embedding", why)
    return row_ND, reason.is_null().to_numpy(zero_copy_only=False), reason


def assigned(column: str, metric: Metric, m: int, tree: Tree, shard: pa.Table) -> pa.Table:
    """Returns the nearest centres and cosines of every row, or a reason."""
    row_ND, defined_N, reason = _points(column, metric, shard)
    some_ND = row_ND if defined_N.all() else row_ND[defined_N]
    index_Nm = np.full((len(row_ND), m), -1, np.int32)
    cosine_Nm = np.full((len(row_ND), m), np.nan, np.float32)
    index_Nm[defined_N] = tree.nearest(some_ND, m)
    for column_m, part in product(range(m), blocks(len(row_ND))):
        some_N = index_Nm[part, column_m] >= 0
        near_ND = tree.centre[index_Nm[part, column_m][some_N]]
        cosine_Nm[part, column_m][some_N] = cosines(row_ND[part][some_N], near_ND, metric)
    columns = {
        CLUSTER_ID.name: pa.array(index_Nm[:, 0], mask=index_Nm[:, 0] < 0),
        CENTROID_COSINE.name: pa.array(cosine_Nm[:, 0], mask=np.isnan(cosine_Nm[:, 0])),
    }
    if m > 1:
        columns[NEAREST_CLUSTERS.name] = _lists(index_Nm, index_Nm < 0, defined_N)
        columns[NEAREST_COSINES.name] = _lists(cosine_Nm, np.isnan(cosine_Nm), defined_N)
    return with_reason(shard, columns, reason)


def cosines(a_ND: NDArray, b_ND: NDArray, metric: Metric) -> NDArray[np.float32]:
    """Returns (N,) the cosine of each row of a with the same row of b; NaN if either is zero.

    With metric `cosine` both have length 1.
    """
    if metric == "euclidean":
        a_ND, b_ND = unit_rows(a_ND), unit_rows(b_ND)
    return np.clip(row_dot(a_ND, b_ND), -1, 1)


def _lists(value_Nm: NDArray, null_Nm: NDArray, defined_N: NDArray) -> pa.Array:
    """Returns a list of m values per row; null for a row without."""
    values = pa.array(value_Nm.reshape(-1), mask=null_Nm.reshape(-1))
    return pa.FixedSizeListArray.from_arrays(values, value_Nm.shape[1], mask=pa.array(~defined_N))


NEAR_ONE = 1e-5  # tolerance of a length of 1 in float32


def given_tree(setting: str, metric: Metric, column: str, inputs: Inputs, ctx: Context) -> Tree:
    """Returns the given centroids, at length 1 for cosine; StageError if they do not fit."""
    where = f"stage '{ctx.worker.stage}'"
    stored = centroids.read(inputs.centroids, setting, where)
    place = f"{where}, key `centroids`"
    if stored.metric != metric:
        found = f"centroids by {stored.metric}, and `metric` is {metric}"
        raise StageError(found, place, f"write metric: {stored.metric}")
    model = inputs.model_of.get(column)
    if model and stored.model and model != stored.model:
        found = f"centroids of the model {stored.model}, and column '{column}' is of {model}"
        raise StageError(found, place, "name centroids of that model, or embed with the other")
    centre_KD = stored.vector
    if metric == "cosine":
        wide_KD = centre_KD.astype(np.float64)
        is_off_K = np.abs(np.sqrt(np.vecdot(wide_KD, wide_KD)) - 1) > NEAR_ONE
        centre_KD = np.where(is_off_K[:, None], unit_rows(centre_KD), centre_KD)
        if np.isnan(centre_KD).any():
            number = int(np.isnan(centre_KD).any(axis=1).argmax())
            do = "leave it out, and number the others anew; or write metric: euclidean"
            raise StageError(f"centroid {number} is zero, which has no direction", place, do)
    return Tree(centre=centre_KD, device=ctx.worker.device)


def space_of(tree: Tree, metric: Metric, rows: Shards, pool: int, ctx: Context) -> Space:
    """Returns the space of the rows and of given centres, which may lie far from them."""
    if metric == "cosine":
        return Space.of(metric, pool, 1, 1, tree.device)
    greatest = ctx.reduce(partial(surveyed, 0), rows, partial(merge_surveyed, 0))["greatest"]
    wide_KD = tree.centre.astype(np.float64)
    own = [np.abs(wide_KD).max(initial=0), np.vecdot(wide_KD, wide_KD).max(initial=0)]
    value, square = np.maximum(greatest, own).tolist()
    return Space.of(metric, pool, value, square, tree.device)
