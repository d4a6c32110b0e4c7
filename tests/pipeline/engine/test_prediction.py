"""Predictions from a probe: their intervals hold in 9 of 10 cases, in sums and by the clock."""

import heapq

import numpy as np
import pytest

from clipmill.pipeline.engine.prediction import LEAST, Predicted, hours, pace, rest

PROBES, DRAWN = 200, 200


def lengths(kind: str, rows: int, rng: np.random.Generator) -> np.ndarray:
    """(rows,) tokens that rows take."""
    if kind == "uniform":
        return rng.integers(5, 78, rows).astype(float)
    if kind == "skewed":
        return np.minimum(rng.lognormal(3, 1, rows).round(), 512)
    if kind == "cut":  # half of the answers reach max_tokens
        return np.minimum(rng.lognormal(4.3, 0.8, rows).round(), 77)
    return np.where(rng.random(rows) < 0.007, 0, 4)  # requests; few rows have no caption


@pytest.mark.parametrize("kind", ["uniform", "skewed", "cut", "rarely none"])
@pytest.mark.parametrize("rows", [400, 20_000])
def test_the_sum_of_the_rows_left_lies_in_the_interval_in_nine_of_ten_probes(kind, rows):
    rng = np.random.default_rng(rows)
    held = 0
    for _ in range(PROBES):
        values_N = lengths(kind, rows, rng)
        predicted = rest(values_N[:DRAWN], rows - DRAWN)
        held += predicted.low <= values_N[DRAWN:].sum() <= predicted.high
    assert held / PROBES >= 0.88


def test_an_interval_is_no_wider_than_it_needs_to_be():
    rng = np.random.default_rng(0)
    values_N = lengths("uniform", DRAWN, rng)
    predicted = rest(values_N, 1_000_000)
    expected = 2 * 1.645 * values_N.std() / DRAWN**0.5 * 1e6
    assert predicted.high - predicted.low == pytest.approx(expected, rel=0.05)
    assert predicted.value == pytest.approx(1e6 * values_N.mean())


def test_few_rows_left_and_few_rows_drawn():
    assert rest(np.array([3.0, 5.0]), 0).high == 0
    assert rest(np.array([3.0]), 7) == Predicted(21)
    assert rest(np.zeros(200), 1000) == Predicted(0, 0, 0)
    two = rest(np.array([3.0, 5.0]), 100)
    assert two.low == 0  # of two rows nearly nothing is known
    assert two.high > 800


def asked(took_R: np.ndarray, at_once: int) -> list[tuple[float, float]]:
    """When each of some requests had its slot: in turn, a slot as soon as one is free."""
    free = [0.0] * at_once
    spans = []
    for took in took_R:
        began = heapq.heappop(free)
        heapq.heappush(free, began + took)
        spans.append((began, began + took))
    return spans


@pytest.mark.parametrize(
    ("at_once", "requests", "shards"), [(32, 200, 1), (32, 800, 4), (8, 200, 3)]
)
def test_the_hours_of_the_rows_left_lie_in_the_interval_in_nine_of_ten_probes(
    at_once, requests, shards
):
    rng = np.random.default_rng(at_once)
    held, left = 0, 2000
    for _ in range(PROBES):
        took_R = 0.2 + lengths("uniform", requests + left, rng) / 50
        found = pace(asked(took_R[:requests], at_once), at_once)
        after = np.array_split(took_R[requests:], shards)
        real_s = sum(max(end for _, end in asked(some, at_once)) for some in after)
        predicted = hours(found, rest(np.ones(DRAWN), left), at_once, shards, 1)
        held += predicted.low <= real_s / 3600 <= predicted.high
        assert found.is_steady
    assert held / PROBES >= 0.88


def test_the_first_and_the_last_requests_are_left_out_where_others_do():
    quick, slow = np.full(32, 0.1), np.full(300, 1.0)
    spans = asked(np.concatenate([quick, slow]), 32)
    found = pace(spans, 32)
    assert found.is_steady
    assert found.mean_s == pytest.approx(1)


def test_more_slots_than_requests_are_no_steady_part():
    spans = asked(np.linspace(0.5, 1, 200), 256)
    found = pace(spans, 256)
    assert (found.is_steady, found.at_once) == (False, 200)
    assert found.mean_s == pytest.approx(0.75)
    requests = rest(np.ones(DRAWN), 25_600)
    assert hours(found, requests, 256, 1, 1).value * 3600 == pytest.approx(100 * 0.75 + 0.25)


def test_shards_are_dealt_out_among_workers():
    found = pace(asked(np.ones(400), 10), 10)
    requests = rest(np.ones(DRAWN), 9000)
    one, two, four = (hours(found, requests, 10, 3, n).value * 3600 for n in (1, 2, 4))
    assert one == pytest.approx(900)
    assert two == pytest.approx(600)  # one of them has two shards
    assert four == pytest.approx(300)


def test_too_few_requests_tell_no_pace():
    assert pace(asked(np.ones(LEAST - 1), 4), 4) is None
    assert pace([], 4) is None
