"""How often the intervals of simulated benches hold the effect that was put in."""

from statistics import NormalDist

import numpy as np
import pytest

from clipmill.pipeline.ledger.proof.noise import draw_weights, holm, mean, variance_bounds, welch

# Shapes: X benches, S seeds, N items, D draws.
BENCHES, DRAWN = 2000, 150


def benches(rng, seeds, items, effect=0.2, seed=0.0, item=0.0, arm_item=0.0):
    """Hits of two arms (X, S, N), and the truth of their difference: one way to hit is easier by
    `effect`; seeds, items, and how an arm takes an item each shift what it takes to hit."""
    shared = item * rng.standard_normal((BENCHES, 1, items), np.float32)
    of_all = (1 + seed**2 + item**2 + arm_item**2) ** 0.5
    hits = []
    for ease in (effect - 0.5, -0.5):
        scale = shared + arm_item * rng.standard_normal((BENCHES, 1, items), np.float32)
        scale = scale + seed * rng.standard_normal((BENCHES, seeds, 1), np.float32)
        scale += rng.standard_normal((BENCHES, seeds, items), np.float32)
        hits.append(scale + ease > 0)
    normal = NormalDist(0, of_all)
    return *hits, normal.cdf(effect - 0.5) - normal.cdf(-0.5)


def drawn(hits):
    """(X, S, D) the accuracy on each draw."""
    weight_DN = draw_weights(hits.shape[-1], 7, 0, DRAWN)
    share_ND = (weight_DN / weight_DN.sum(axis=1, keepdims=True)).T
    return (hits.astype(np.float32) @ share_ND).astype(np.float64)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(
    "noise",
    [
        {"seed": 0.3, "item": 1.0},
        {"seed": 0.02, "item": 1.0, "arm_item": 2.0},
        {"seed": 0.1, "item": 1.0, "arm_item": 0.5},
        {},
    ],
    ids=["of seeds", "of items", "of both", "of each answer alone"],
)
def test_95_in_100_intervals_hold_the_truth_whatever_the_noise_comes_from(seeds, noise):
    rng = np.random.default_rng(seeds)
    a, b, truth = benches(rng, seeds, 80, **noise)
    value_a, value_b, draw_a, draw_b = a.mean(-1), b.mean(-1), drawn(a), drawn(b)
    for found in (
        welch(value_a, value_b, draw_a, draw_b),
        mean(value_a - value_b, draw_a - draw_b),
    ):
        assert 0.92 <= (np.abs(found.value - truth) <= found.margin()).mean() <= 0.98
    if noise.get("arm_item") == 2.0:  # seeds alone would be too sure
        alone = welch(value_a, value_b, None, None)
        assert (np.abs(alone.value - truth) <= alone.margin()).mean() < 0.8


def test_what_could_be_seen_is_found_four_times_in_five():
    a, b, _ = benches(np.random.default_rng(1), 5, 80, effect=0.0, seed=0.2, item=1.0)
    found = welch(a.mean(-1), b.mean(-1), drawn(a), drawn(b))
    visible = float(np.median(found.visible()))
    shifted = type(found)(found.value + visible, found.seeds, found.items, found.df)
    assert 0.75 <= (shifted.p < 0.05).mean() <= 0.9
    assert (found.p < 0.05).mean() < 0.07
    assert found.visible(20).mean() > found.visible().mean()


def test_a_variances_interval_holds_the_truth_in_95_of_100_samples():
    found_N = np.random.default_rng(2).standard_normal((4_000, 4)).var(axis=1, ddof=1)
    low, high = variance_bounds(1.0, 3)
    assert 0.94 <= ((low * found_N <= 1) & (high * found_N >= 1)).mean() <= 0.96


def test_without_items_the_difference_is_welchs():
    from scipy.stats import ttest_ind

    a, b = np.array([0.1, 0.14, 0.12]), np.array([0.2, 0.3, 0.22, 0.27])
    found, known = welch(a, b, None, None), ttest_ind(a, b, equal_var=False)
    low, high = known.confidence_interval()
    assert found.p == pytest.approx(known.pvalue)
    assert found.df == pytest.approx(known.df)
    assert found.value + found.margin() == pytest.approx(high)
    assert found.value - found.margin() == pytest.approx(low)


def test_seeds_equal_to_the_digit_keep_the_noise_of_items_and_of_each_answer():
    hits = np.array([[1, 1, 0, 0] * 20, [0, 1, 1, 0] * 20], bool)  # two models, half right
    found = mean(hits.mean(-1), drawn(hits))
    assert (found.value, found.seeds > 0, found.items > 0) == (0.5, True, True)
    assert mean(hits.mean(-1), None).error == 0


def test_holms_levels_are_those_of_his_procedure():
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.6, 0.7])).max() == 1


def test_a_draw_is_a_function_of_item_and_draw_alone():
    every = draw_weights(50, 3, 0, 400)
    assert (draw_weights(50, 3, 100, 7) == every[100:107]).all()
    assert (draw_weights(20, 3, 0, 400) == every[:, :20]).all()
    assert (draw_weights(50, 4, 0, 400) != every).any()
    assert every.mean() == pytest.approx(1, abs=0.02)
    assert every.var() == pytest.approx(1, abs=0.05)
