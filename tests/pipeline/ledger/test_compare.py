"""Differences of arms: what is claimed, in which words, and what is left unclaimed."""

from dataclasses import replace

import numpy as np
import pytest

from clipmill.pipeline.ledger.proof.compare import Scored, compare, judged, share


def scored(*values: float, seeds=None, hits=None) -> Scored:
    """Models of these scores; `hits` (S, N), where there are any, on a hundred draws of items."""
    draw_SD = None
    if hits is not None:
        weight_ND = np.random.default_rng(0).poisson(1, (hits.shape[1], 100)).astype(float)
        draw_SD = hits @ weight_ND / weight_ND.sum(0)
    return Scored(
        seeds=tuple(seeds or range(len(values))), value_S=np.array(values), draw_SD=draw_SD
    )


def verdict(a: Scored, b: Scored, others: int = 0):
    """The comparison on a page with so many others, none of which is a difference."""
    nothing = compare("c", "d", scored(0.1, 0.3, 0.2), scored(0.1, 0.31, 0.2))
    return judged([compare("dfn", "raw", a, b), *[nothing] * others])[0]


def test_a_difference_beyond_the_noise_is_said_with_half_its_interval():
    found = verdict(scored(0.42, 0.44), scored(0.2, 0.22))
    # s² is 0.0002 of each: the error is sqrt(0.0002), with 2 degrees of freedom t is 4.303
    half = 4.303 * 0.0002**0.5
    assert (found.apart.low, found.apart.high) == pytest.approx(
        (0.22 - half, 0.22 + half), abs=1e-5
    )
    assert found.words == "dfn beats raw by 22.0 ± 6.1"
    assert (found.verdict, found.seeds, found.items_error) == ("better", (2, 2), None)
    worse = verdict(scored(0.2, 0.22), scored(0.42, 0.44))
    assert (worse.verdict, worse.words) == ("worse", "raw beats dfn by 22.0 ± 6.1")


def test_what_luck_can_do_is_no_difference():
    found = verdict(scored(0.2, 0.3), scored(0.25, 0.27))
    assert (found.verdict, found.words) == ("none", "no difference")
    assert found.apart.low < 0 < found.apart.high
    assert found.visible > found.half


def test_among_many_comparisons_the_same_figures_say_less():
    a, b = scored(0.30, 0.32, 0.31), scored(0.2, 0.24, 0.22)
    alone, among = verdict(a, b), verdict(a, b, others=20)
    assert (alone.verdict, among.verdict) == ("better", "none")
    assert (alone.apart, among.level) == (among.apart, pytest.approx(21 * alone.level))
    assert among.visible > alone.visible


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (scored(0.9), scored(0.1, 0.2), "one seed: no interval is claimed"),
        (scored(0.9, 0.8), scored(0.1), "one seed: no interval is claimed"),
        (
            scored(0.9, 0.9, 0.9),
            scored(0.1, 0.2, 0.3),
            "seeds equal to the digit: no interval is claimed",
        ),
    ],
)
def test_what_few_seeds_cannot_show_is_not_claimed(a, b, words):
    found = verdict(a, b, others=1)
    assert (found.verdict, found.words) == ("unclaimed", words)
    assert (found.apart.low, found.level, found.paired, found.visible) == (None,) * 4
    assert found.apart.value == pytest.approx(a.value_S.mean() - b.value_S.mean())


def test_one_model_has_no_interval():
    assert (scored(0.3).estimate.value, scored(0.3).estimate.low) == (0.3, None)
    assert scored(0.3, 0.3).estimate.low is None


def test_seeds_equal_to_the_digit_keep_the_noise_of_items():
    a, b = (np.array([hits] * 2).repeat(10, 1) for hits in ([1, 1, 1, 0], [1, 0, 0, 0]))
    found = verdict(scored(0.75, 0.75, hits=a), scored(0.25, 0.25, hits=b))
    # half of 40 items are hit by one arm alone
    assert found.items_error == pytest.approx((0.25 / 40) ** 0.5, rel=0.2)
    assert (found.seeds_error, found.paired is None) == (0, False)
    assert found.words.endswith(", by the noise of items alone: seeds equal to the digit")
    assert scored(0.75, 0.75, hits=a).estimate.low < 0.7


def test_models_that_answer_alike_differ_by_nothing_and_nothing_is_claimed():
    hits = np.array([[1, 0, 0, 1]] * 2).repeat(10, 1)
    found = verdict(scored(0.5, 0.5, hits=hits), scored(0.5, 0.5, hits=hits))
    assert (found.verdict, found.why) == ("unclaimed", "seeds equal to the digit")


def test_pairs_are_of_equal_seeds_and_stand_beside():
    a, b = scored(0.5, 0.3, 0.1, seeds=(3, 1, 2)), scored(0.22, 0.01, 0.41, seeds=(1, 2, 3))
    found = verdict(a, b)
    # 0.09, 0.08, 0.09 by seed: seeds move both arms alike, which Welch's interval does not know
    assert found.paired.value == pytest.approx(0.26 / 3)
    assert found.paired.high - found.paired.low < 0.1 < found.apart.high - found.apart.low
    assert (found.verdict, found.paired.low > 0) == ("none", True)
    assert verdict(a, replace(b, seeds=(7, 8, 9))).paired is None
    assert verdict(a, replace(b, seeds=(1, 1, 2))).paired is None


def test_the_same_figures_give_the_same_digits():
    rng = np.random.default_rng(4)
    a, b = rng.random((2, 3, 40)) < 0.4
    pages = [verdict(scored(*a.mean(1), hits=a), scored(*b.mean(1), hits=b)) for _ in range(2)]
    assert pages[0] == pages[1]


def test_95_in_100_intervals_hold_the_share_of_the_way_between_two_arms():
    held, drawn = 0, np.random.default_rng(0).normal(0, 0.02, (300, 3, 4))
    for noise_3S in drawn:
        arms = np.array([[0.16], [0.1], [0.2]]) + noise_3S
        way = share(*(scored(*value_S) for value_S in arms))
        held += way is not None and way.low <= 0.6 <= way.high
    assert 0.92 <= held / len(drawn) <= 0.98


def test_items_that_all_arms_find_hard_widen_the_share_less_than_items_of_each_ones_own():
    rng = np.random.default_rng(0)
    hard_N, own_3N = rng.normal(0, 1, 400), rng.normal(0, 1, (3, 400))
    answer_3SN = rng.normal(0, 0.3, (3, 4, 400))
    widths = []
    for item_3N in (np.stack([hard_N] * 3), own_3N):
        hits = item_3N[:, None] + answer_3SN > np.array([0.8, 1.2, 0.2])[:, None, None]
        way = share(*(scored(*arm_SN.mean(1), hits=arm_SN) for arm_SN in hits))
        assert way.low < way.value < way.high
        widths.append(way.high - way.low)
    assert widths[0] < 0.6 * widths[1]


def test_no_share_is_said_of_one_seed_or_of_ends_that_are_not_told_apart():
    low, high = scored(0.1, 0.12), scored(0.4, 0.42)
    assert share(scored(0.2), low, high) is None
    assert share(scored(0.2, 0.22), low, scored(0.11, 0.13)) is None
    assert share(scored(0.2, 0.2), scored(0.1, 0.1), scored(0.1, 0.1)) is None
