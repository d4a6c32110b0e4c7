"""Nearest centres and sums by centre: float64's answer, for every precision, batch and value."""

import sys
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch

from clipmill.stages.ops.vectors import _coarse, _on_device
from clipmill.stages.ops.vectors.matrices import unit_rows
from clipmill.stages.ops.vectors.nearest import fixed_scale, nearest, nearest_centre, sums_by_group

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


def assert_nearest(row_ND, centre_KD, metric, *ms):
    """`nearest` of each m gives what float64 sorts, in either precision, here and by torch."""
    row_ND, centre_KD = np.asarray(row_ND, np.float32), np.asarray(centre_KD, np.float32)
    score_NK = wide_scores(row_ND, centre_KD, metric)
    index_NK = np.argsort(-score_NK, axis=1, kind="stable")
    value_NK = np.take_along_axis(score_NK, index_NK, 1)
    value_NK = -value_NK if metric == "euclidean" else value_NK
    with np.errstate(over="ignore"):
        value_NK = value_NK.astype(np.float32)
    # "cpu:0" is torch's name for the processor, as it is for a GPU: torch's way is taken.
    for m, precision, device in product(ms, PRECISIONS, ("cpu", "cpu:0")):
        case = f"{m} nearest in {precision} on {device}"
        found_Nm, how_near_Nm = nearest(row_ND, centre_KD, metric, m, precision, device)
        np.testing.assert_array_equal(found_Nm, index_NK[:, :m], case)
        np.testing.assert_array_equal(how_near_Nm, value_NK[:, :m], case)
    for precision in PRECISIONS:
        only_N = nearest_centre(row_ND, centre_KD, metric, precision)
        np.testing.assert_array_equal(only_N, index_NK[:, 0], precision)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


every = pytest.mark.parametrize("metric", METRICS)


@every
@pytest.mark.parametrize(
    ("rows", "width", "centres"), [(300, 1, 7), (90, 2, 1), (90, 33, 40), (9, 96, 1100)]
)
def test_random_rows_get_what_float64_says(rows, width, centres, metric):
    row_ND, centre_KD = normal(0, rows, width), normal(1, centres, width)
    if metric == "cosine":
        row_ND, centre_KD = unit_rows(row_ND), unit_rows(centre_KD)
    assert_nearest(row_ND, centre_KD, metric, 1, 8)  # more than there are centres, too


@every
def test_rows_on_the_border_of_cells(metric):
    centre_KD = unit_rows(normal(0, 40, 64))
    middle_D = (centre_KD[3].astype(np.float64) + centre_KD[7]) / 2
    if metric == "cosine":
        middle_D /= np.linalg.norm(middle_D)
    row_ND = (middle_D + 1e-7 * normal(1, 300, 64)).astype(np.float32)
    assert_nearest(row_ND, centre_KD, metric, 1)
    in_float32_N = (row_ND @ centre_KD.T).argmax(axis=1)
    for precision in PRECISIONS:
        exact_N = nearest_centre(row_ND, centre_KD, metric, precision)
        assert (in_float32_N != exact_N).any(), "the border rows test nothing"


@every
@pytest.mark.parametrize("spread", [1e-7, 1e-3])
def test_centres_and_rows_that_are_nearly_one(spread, metric):
    one_D = normal(0, 64)
    row_ND, centre_KD = one_D + spread * normal(1, 100, 64), one_D + spread * normal(2, 80, 64)
    assert_nearest(row_ND, centre_KD, metric, 1, 3)


@every
def test_copies_are_taken_by_the_smaller_index(metric):
    centre_KD = np.repeat(unit_rows(normal(0, 3, 40)), 20, axis=0)[np.arange(60) * 7 % 60]
    row_ND = np.concatenate([unit_rows(normal(1, 40, 40)), centre_KD[:5]])
    assert_nearest(row_ND, centre_KD, metric, 1, 8, 60, 70)


@every
def test_a_thousand_centres_as_near_as_one_another(metric):
    turn_K = 2 * np.pi * np.arange(1000) / 1000
    centre_KD = np.stack([np.cos(turn_K), np.sin(turn_K), np.zeros(1000)], axis=1)
    row_ND = [[0, 0, 1], [0, 0, 0], [0, 0, -1], [1e-9, 0, 1], [1, 0, 0], [-1e-8, 1e-8, 0.5]]
    assert_nearest(row_ND, centre_KD, metric, 1, 5)


@every
def test_numbers_of_every_size(metric):
    signs_ND = normal(0, 82, 20)
    size_N1 = (10.0 ** np.linspace(-44, 37, 82)).astype(np.float32)[:, None]
    row_ND = np.concatenate([signs_ND * size_N1, np.zeros((2, 20)), [[3e38] * 20, [-1e-45] * 20]])
    for centre_KD in (row_ND[::5], row_ND[:20], row_ND[62:], row_ND[35:45], row_ND[-4:]):
        assert_nearest(row_ND, centre_KD, metric, 1, 2)


@every
def test_far_from_the_origin_and_with_an_outlier(metric):
    row_ND, centre_KD = 1e4 + normal(1, 100, 16), 1e4 + normal(0, 60, 16)
    assert_nearest(row_ND, centre_KD, metric, 2)
    centre_KD[17] *= -1e6
    assert_nearest(row_ND, centre_KD, metric, 2)


def test_no_rows_and_fewer_centres_than_asked_for():
    index_Nm, value_Nm = nearest(np.empty((0, 4), np.float32), normal(0, 3, 4), m=2)
    assert (index_Nm.dtype, value_Nm.dtype, index_Nm.shape) == (np.int32, np.float32, (0, 2))
    assert nearest(normal(1, 5, 4), normal(0, 3, 4), m=8)[0].shape == (5, 3)
    assert nearest_centre(np.empty((0, 4), np.float32), np.empty((0, 4), np.float32)).shape == (0,)


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused(bad, device):
    good_ND, bad_ND = normal(0, 3, 4), normal(1, 5, 4)
    bad_ND[3, 1] = bad
    for row_ND, centre_KD in ((bad_ND, good_ND), (good_ND, bad_ND)):
        with pytest.raises(ValueError, match="NaN or infinite"):
            nearest(row_ND, centre_KD, device=device)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_batches_and_strips_change_nothing(precision, monkeypatch):
    row_ND, centre_KD = normal(3, 300, 32), normal(4, 250, 32)  # rows past a block
    whole = nearest(row_ND, centre_KD, "dot", 3, precision)
    monkeypatch.setattr(_coarse, "STRIP", 100)
    monkeypatch.setattr(_on_device, "SCORES", 2**12)  # 16 rows
    monkeypatch.setattr(_on_device, "PAIRS", 50)
    for device in ("cpu", "cpu:0"):
        parts = [
            nearest(part, centre_KD, "dot", 3, precision, device)
            for part in np.array_split(row_ND, 7)
        ]
        for at_once, in_parts in zip(whole, zip(*parts, strict=True), strict=True):
            np.testing.assert_array_equal(at_once, np.concatenate(in_parts))


def test_every_processor_gives_the_same(monkeypatch):
    row_ND, centre_KD = normal(5, 400, 64), normal(6, 900, 64)
    expected, real = nearest(row_ND, centre_KD, "euclidean", 2), _coarse.processor()
    for has in (set(), real & {"avx512bf16"}):
        monkeypatch.setattr(_coarse, "processor", lambda has=has: frozenset(has))
        found = nearest(row_ND, centre_KD, "euclidean", 2)
        for values, same in zip(expected, found, strict=True):
            np.testing.assert_array_equal(values, same)


def test_nothing_waits_for_the_import_of_torch(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    nearest(normal(5, 300, 300), normal(6, 800, 300))
    assert "torch" not in sys.modules


def test_a_process_that_lets_torch_round_products_gets_the_same():
    centre_KD = unit_rows(normal(0, 900, 64))
    row_ND = unit_rows(centre_KD[np.arange(400)] + centre_KD[np.arange(400) + 1])  # borders
    expected = nearest_centre(row_ND, centre_KD, precision="float32")
    torch.set_float32_matmul_precision("medium")
    try:
        found = nearest_centre(row_ND, centre_KD, precision="float32", device="cpu:0")
    finally:
        torch.set_float32_matmul_precision("highest")
    np.testing.assert_array_equal(found, expected)


def test_sums_are_whole_numbers_that_no_order_changes():
    row_ND, index_N = 100 * normal(0, 500, 24), np.arange(500, dtype=np.int32) ** 2 % 7
    scale = fixed_scale(float(np.abs(row_ND).max()), 500)
    sum_KD, count_K = sums_by_group(row_ND, index_N, 9, scale)
    fixed_ND = np.rint(row_ND.astype(np.float64) * scale).astype(np.int64)
    for k in range(9):
        np.testing.assert_array_equal(sum_KD[k], fixed_ND[index_N == k].sum(axis=0))
        assert count_K[k] == (index_N == k).sum()
    parts = [sums_by_group(row_ND[s::3], index_N[s::3], 9, scale)[0] for s in range(3)]
    np.testing.assert_array_equal(sum(parts), sum_KD)
    assert (
        sums_by_group(row_ND[:0], index_N[:0], 9, scale)[0].tolist() == np.zeros((9, 24)).tolist()
    )


def test_a_sum_of_the_largest_fits_and_keeps_thirty_bits():
    wrong = {}
    largest_6 = np.float32([1.0, 0.9999999, 1.5, 3.4e38, 1e-45, 1e-3]).tolist()
    for largest, rows in product(largest_6, [1, 1000, 10**9, 2**33]):
        scale = fixed_scale(largest, rows)
        whole = round(Fraction(largest) * Fraction(scale))
        row_21 = np.full((2, 1), -largest, np.float32)
        sum_KD, _ = sums_by_group(row_21, np.zeros(2, np.int32), 1, scale)
        fits = whole * rows < 2**63 and 2**29 <= whole < 2**50
        if not fits or sum_KD.tolist() != [[-2 * whole]]:
            wrong[largest, rows] = whole, sum_KD
    assert not wrong


def test_a_pool_of_zeros_has_a_scale():
    zero_N1, index_N = np.zeros((2, 1), np.float32), np.zeros(2, np.int32)
    assert sums_by_group(zero_N1, index_N, 1, fixed_scale(0, 2))[0].tolist() == [[0]]
