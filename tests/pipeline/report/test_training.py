"""Losses on the page: one chart for all trainings of a kind, with a band over seeds."""

import pytest

from clipmill.pipeline.ledger.proof.results import LossCurve
from clipmill.pipeline.report.training import POINTS, training_charts


def curve(stage: str, seed: str, loss: list[float], uses: str = "train.clip") -> LossCurve:
    steps = tuple(range(len(loss)))
    return LossCurve(stage=stage, uses=uses, seed=seed, step=steps, loss=tuple(loss))


def test_raw_and_curated_are_lines_of_one_chart_and_another_kind_has_its_own():
    raw = [curve("raw", f"seed {seed}", [4.0 + seed, 3.0 + seed]) for seed in (0, 1)]
    best = [curve("curated", "", [4.0, 2.0])]
    other, *none = training_charts([*raw, *best, curve("dfn", "", [9.0], "train.filter")])[1:]
    assert (other["uses"], none) == ("train.filter", [])
    chart = training_charts([*raw, *best])[0]["chart"]
    assert [line["name"] for line in chart["lines"]] == ["raw", "curated"]
    (low, _, _, high), mean = chart["bands"][0]["dots"], chart["lines"][0]["dots"][0]
    assert low["y"] > mean["y"] > high["y"]  # y goes down
    assert mean["y"] == pytest.approx((low["y"] + high["y"]) / 2, abs=0.02)


def test_the_end_is_the_mean_over_seeds_of_the_last_twentieth():
    falling = [float(step) for step in range(100, 0, -1)]
    (chart,) = training_charts([curve("raw", "", falling), curve("raw", "b", falling[:80])])
    (end,) = chart["ends"]
    assert (end["seeds"], end["steps"], end["last"]) == (2, 80, 22.5)


def test_a_long_curve_is_thinned_and_an_empty_one_is_none():
    (chart,) = training_charts([curve("raw", "", [1.0] * 10_000), curve("none", "", [])])
    (line,) = chart["chart"]["lines"]
    assert POINTS <= len(line["dots"]) <= 2 * POINTS


def test_more_trainings_than_colours_have_more_charts():
    charts = training_charts([curve(f"arm_{n}", "", [2.0, 1.0]) for n in range(12)])
    assert [len(chart["chart"]["lines"]) for chart in charts] == [5, 5, 2]
    assert [end["stage"] for end in charts[2]["ends"]] == ["arm_10", "arm_11"]


@pytest.mark.parametrize("lost", [float("nan"), float("inf"), None])
def test_a_training_that_diverged_is_drawn_as_far_as_it_has_a_loss(lost):
    (chart,) = training_charts([curve("raw", "", [2.0, 1.0, lost, lost]), curve("b", "", [lost])])
    assert [len(line["dots"]) for line in chart["chart"]["lines"]] == [2, 0]
    assert [end["last"] < 2 for end in chart["ends"]] == [False, False]
