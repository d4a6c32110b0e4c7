"""Bands for a floor: the chance to meet, by the formula and by trial."""

import numpy as np
import pytest

from clipmill.stages.dedup._minhash import band_keys
from clipmill.stages.dedup.minhash import bands_for, recall


@pytest.mark.parametrize(
    ("floor", "permutations", "bands"),
    [
        (0.5, 128, (42, 3)),
        (0.7, 128, (25, 5)),
        (0.8, 128, (18, 7)),
        (0.9, 128, (10, 12)),
        (1, 8, (1, 8)),
    ],
)
def test_bands_are_the_longest_that_meet_the_recall(floor, permutations, bands):
    assert bands_for(floor, permutations, 0.95) == bands
    longer = bands[1] + 1
    assert longer > permutations or recall(floor, permutations // longer, longer) < 0.95


def test_a_pair_meets_as_often_as_the_formula_says():
    rng = np.random.default_rng(0)
    trials, (bands, rows) = 20_000, (25, 5)
    a_NK = rng.integers(0, 2**32, (trials, 125), dtype=np.uint32)
    differs_NK = rng.random((trials, 125)) >= 0.6  # each value is equal with the pair's Jaccard
    b_NK = a_NK ^ differs_NK
    met_N = (band_keys(a_NK, bands, rows) == band_keys(b_NK, bands, rows)).any(axis=1)
    assert met_N.mean() == pytest.approx(recall(0.6, bands, rows), abs=0.01)


def test_too_few_permutations_are_refused():
    with pytest.raises(ValueError, match="8 permutations find"):
        bands_for(0.1, 8, 0.95)
