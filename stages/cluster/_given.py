"""Centroids of another run or of a file, to which rows are assigned as they are."""

from functools import partial

import numpy as np

from clipmill.pipeline.dataset import Context, Inputs, Shards
from clipmill.pipeline.errors import StageError
from clipmill.stages.cluster._rounds import Space
from clipmill.stages.cluster._start import merge_surveyed, surveyed
from clipmill.stages.cluster._tree import Tree
from clipmill.stages.ops import centroids
from clipmill.stages.ops.centroids import Metric
from clipmill.stages.ops.vectors import unit_rows

NEAR_ONE = 1e-5  # a length of 1, as float32 stores it


def given_tree(setting: str, metric: Metric, column: str, inputs: Inputs, ctx: Context) -> Tree:
    """The given centroids, by cosine at length 1; StageError where they are not of these rows."""
    where = f"stage '{ctx.worker.stage}'"
    given = centroids.read(inputs.centroids, setting, where)
    at = f"{where}, key `centroids`"
    if given.metric != metric:
        found = f"centroids by {given.metric}, and `metric` is {metric}"
        raise StageError(found, at, f"write metric: {given.metric}")
    model = inputs.model_of.get(column)
    if model and given.model and model != given.model:
        found = f"centroids of the model {given.model}, and column '{column}' is of {model}"
        raise StageError(found, at, "name centroids of that model, or embed with the other")
    centre_KD = given.vector
    if metric == "cosine":
        wide_KD = centre_KD.astype(np.float64)
        is_off_K = np.abs(np.sqrt(np.vecdot(wide_KD, wide_KD)) - 1) > NEAR_ONE
        centre_KD = np.where(is_off_K[:, None], unit_rows(centre_KD), centre_KD)
        if np.isnan(centre_KD).any():
            number = int(np.isnan(centre_KD).any(axis=1).argmax())
            do = "leave it out, and number the others anew; or write metric: euclidean"
            raise StageError(f"centroid {number} is zero, which has no direction", at, do)
    return Tree(centre=centre_KD, device=ctx.worker.device)


def space_of(tree: Tree, metric: Metric, rows: Shards, pool: int, ctx: Context) -> Space:
    """The space of the rows and of given centres, which may lie far from them."""
    if metric == "cosine":
        return Space.of(metric, pool, 1, 1, tree.device)
    seen = ctx.reduce(partial(surveyed, 0), rows, partial(merge_surveyed, 0))["greatest"]
    wide_KD = tree.centre.astype(np.float64)
    own = [np.abs(wide_KD).max(initial=0), np.vecdot(wide_KD, wide_KD).max(initial=0)]
    value, square = np.maximum(seen, own).tolist()
    return Space.of(metric, pool, value, square, tree.device)
