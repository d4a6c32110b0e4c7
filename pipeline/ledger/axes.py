"""The two directions in which the centroids of clusters lie farthest apart."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Shapes: B vectors of a block, K of all blocks, D width of a vector.

Blocks = Callable[[], Iterable[tuple[NDArray[np.float32], NDArray[np.int64]]]]
NEAR = 1 - 1e-9  # of the largest entry: those this near are taken for as large


@dataclass(frozen=True)
class Plane:
    """Where each vector stands in a plane, and the share of the variance that each axis holds."""

    place: NDArray[np.float64]  # (K, 2)
    share: tuple[float, float]


def plane(blocks: Blocks) -> Plane:
    """(K, 2) the vectors on their first two principal axes, from their mean; 0 where there is no
    such axis.

    `blocks` gives the vectors, each with its weight, as often as it is called: a block and a matrix
    of D * D are all that is held. A vector counts by its weight, so that a cluster of few rows
    turns no axis; where all weights are 0, all count alike. Of each axis the first entry that is as
    large as any is positive.
    Source: principal components (Pearson 1901), in float64.
    Error: of axes that hold equal variance any two may be taken.
    """
    total, rows, width = 0.0, 0, 0
    for vector_BD, weight_B in blocks():
        total += float(weight_B.sum())
        rows += len(vector_BD)
        width = vector_BD.shape[1]
    if not rows or not width:
        return Plane(np.zeros((rows, 2)), (0.0, 0.0))
    even = 0.0 if total else 1.0
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
    whole = float(np.trace(spread_DD))
    shares = [float(part / whole) if whole > 0 else 0.0 for part in variance]
    first, second = [*shares, 0.0][:2]
    return Plane(place_K2, (first, second))
