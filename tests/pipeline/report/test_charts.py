"""Charts: round ticks, bars that fill their bins, marks where the values are."""

from math import nextafter

import pytest

from clipmill.pipeline.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Band,
    Point,
    bands,
    histogram,
    lines,
    scatter,
    ticks,
)
from clipmill.pipeline.report.charts import short as shown


@pytest.mark.parametrize(
    ("low", "high", "known"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.10, 0.40, [0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4]),
        (-3, 7, [-2, 0, 2, 4, 6]),
        (0, 12_000, [0, 2000, 4000, 6000, 8000, 10_000, 12_000]),
    ],
)
def test_ticks_are_round_and_inside(low, high, known):
    assert ticks(low, high) == pytest.approx(known)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (9999, "9999"), (12_345, "12.35k"), (4e6, "4M"), (-2e9, "-2G")],
)
def test_numbers_are_short(value, text):
    assert shown(value) == text


def test_bars_stack_and_the_highest_reaches_the_top():
    chart = histogram([0, 1, 2], [3, 0], [1, 2], [{"value": 1.0, "text": "x > 1"}])
    kept, dropped, other = chart["bars"]
    assert (kept["kind"], dropped["kind"], other["kind"]) == ("kept", "dropped", "dropped")
    assert dropped["y"] == TOP
    assert dropped["y"] + dropped["height"] == pytest.approx(kept["y"], abs=0.02)
    assert kept["y"] + kept["height"] == pytest.approx(HEIGHT - BOTTOM)
    assert other["height"] == pytest.approx(kept["height"] * 2 / 3, abs=0.02)
    assert chart["cuts"] == [{"x": (LEFT + WIDTH - RIGHT) / 2, "text": "x > 1"}]


def test_a_bar_that_towers_over_all_others_is_cut_off_and_says_its_rows():
    chart = histogram([0, 1, 2, 3], [900, 2, 0], [100, 2, 3], [])
    (tower,) = chart["towers"]
    assert tower["text"] == "1,000"
    kept, dropped, low, _, _ = chart["bars"]
    assert dropped["y"] == TOP
    assert kept["height"] == pytest.approx(9 * dropped["height"], abs=0.1)
    assert low["height"] > (HEIGHT - TOP - BOTTOM) / 4  # where 2 of 1,000 would be nothing
    assert histogram([0, 1, 2], [3, 1], [0, 0], [])["towers"] == []


def test_the_axis_ends_at_a_tick_above_all_values():
    chart = bands([Band("loss", [0, 1], *3 * [[4.83, 3.12]])])
    texts = [tick["text"] for tick in chart["y_ticks"]]
    assert (float(texts[0]), float(texts[-1])) == (3.0, 5.0)
    assert chart["y_ticks"][-1]["at"] == TOP


def test_rows_are_counted_in_whole_numbers_whatever_the_values_are():
    chart = histogram([0.1, 0.2, 0.3], [1, 0], [0, 1], [])
    assert [tick["text"] for tick in chart["y_ticks"]] == ["0", "1"]


def test_whole_numbers_get_whole_ticks():
    chart = histogram([-0.5, 0.5], [1], [0], [], is_whole=True)
    assert [tick["text"] for tick in chart["x_ticks"]] == ["0"]


def test_lines_go_through_their_points_and_nothing_is_still_a_chart():
    (line,) = lines([("kept", [0, 10], [0, 4])])["lines"]
    assert line["dots"] == [{"x": LEFT, "y": HEIGHT - BOTTOM}, {"x": WIDTH - RIGHT, "y": TOP}]
    assert lines([("one", [3], [2])])["lines"][0]["dots"][0]["y"] == TOP
    assert lines([("none", [], [])])["lines"][0]["dots"] == []


@pytest.mark.parametrize("high", [100 / 3, 1e6, 1e17])
def test_values_that_are_equal_but_for_rounding_are_a_chart(high):
    low = nextafter(high, 0)
    points = [Point("a", "s1", 10, low, low, low), Point("b", "s1", 20, high, high, high)]
    assert len(scatter(points)["marks"]) == 2
    assert len(bands([Band("a", [0, 1], *3 * [[low, high]])])["lines"]) == 1
