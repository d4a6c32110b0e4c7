"""Nearest centres and sums by centre: float64's answer, for every precision, batch and value."""

import numpy as np
import pytest

from stages.ops.nearest import nearest, nearest_centre
from stages.ops.vectors import unit_rows

METRICS = ("cosine", "euclidean", "dot")
PRECISIONS = ("float32", "bfloat16")
LANES = 32  # float64 sums side by side


def wide_scores(row_ND, centre_KD, metric) -> np.ndarray:
    """(N, K) dot products, or minus squared distances, in float64, summed in the documented order:
    every 32nd value, one after the other, then these sums by halves."""
    width = -(-row_ND.shape[1] // LANES) * LANES
    row_ND, centre_KD = (
        np.pad(values.astype(np.float64), ((0, 0), (0, width - values.shape[1])))
        for values in (row_ND, centre_KD)
    )
    lane_NKS = np.zeros((len(row_ND), len(centre_KD), LANES))
    for begin in range(0, width, LANES):
        row_N1S, centre_1KS = (
            row_ND[:, None, begin : begin + LANES],
            centre_KD[None, :, begin : begin + LANES],
        )
        off_NKS = row_N1S - centre_1KS
        lane_NKS += -off_NKS * off_NKS if metric == "euclidean" else row_N1S * centre_1KS
    while lane_NKS.shape[2] > 1:
        half = lane_NKS.shape[2] // 2
        lane_NKS = lane_NKS[..., :half] + lane_NKS[..., half:]
    return lane_NKS[..., 0]


def assert_nearest(row_ND, centre_KD, metric, m=1, precision="float32"):
    score_NK = wide_scores(row_ND, centre_KD, metric)
    index_Nm = np.argsort(-score_NK, axis=1, kind="stable")[:, :m]
    value_Nm = np.take_along_axis(score_NK, index_Nm, 1)
    found_Nm, how_near_Nm = nearest(row_ND, centre_KD, metric, m, precision)
    np.testing.assert_array_equal(found_Nm, index_Nm)
    value_Nm = -value_Nm if metric == "euclidean" else value_Nm
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(how_near_Nm, value_Nm.astype(np.float32))
    if m == 1:
        only_N = nearest_centre(row_ND, centre_KD, metric, precision)
        np.testing.assert_array_equal(only_N, index_Nm[:, 0])


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("width", "centres"), [(1, 7), (2, 1), (33, 40), (64, 1100)])
def test_random_rows_get_what_float64_says(width, centres, metric, precision):
    row_ND, centre_KD = normal(0, 300, width), normal(1, centres, width)
    if metric == "cosine":
        row_ND, centre_KD = unit_rows(row_ND), unit_rows(centre_KD)
    for m in (1, 8):
        assert_nearest(row_ND, centre_KD, metric, m, precision)
