"""Intervals: published values, and the area under a curve against counting every pair."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipmill.metadata.stats import auc, wilson

SCORES = st.lists(st.integers(0, 6), min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [(0, 10, 0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1)],
)
def test_intervals_are_wilsons(hits, trials, low, high):
    assert wilson(hits / trials, trials) == pytest.approx((low, high), abs=1e-4)


def test_a_share_of_no_trials_may_be_any():
    assert wilson(0.0, 0) == (0.0, 1.0)


@given(SCORES, SCORES)
def test_the_area_is_the_share_of_pairs_in_order_ties_half(good, bad):
    pairs = [(g > b) + (g == b) / 2 for g in good for b in bad]
    area = auc(np.array(good, float), np.array(bad, float))
    assert area.value == pytest.approx(np.mean(pairs))
    assert 0 <= area.low <= area.value <= area.high <= 1


def test_the_interval_of_an_area_is_hanley_and_mcneils():
    rng = np.random.default_rng(0)
    area = auc(rng.normal(1, 1, 400), rng.normal(0, 1, 300))
    areas = [auc(rng.normal(1, 1, 400), rng.normal(0, 1, 300)).value for _ in range(300)]
    assert (area.high - area.low) / 2 == pytest.approx(1.96 * np.std(areas), rel=0.15)
