"""Draws against the probabilities they stand for, over many rows; roundings; empty batches."""

import numpy as np
import pyarrow as pa
import pytest

from clipmill.stages.select.balance import Draw, Pairs

COUNTS = np.array([1, 19_999, 20_000, 20_001, 50_000, 200_000, 1_000_000, 120_000_000])
T = 20_000


def rows_of(lists: list[list[int]], rows: int | None = None) -> pa.Table:
    """A row of each list, or so many rows of these lists in turn."""
    rows = len(lists) if rows is None else rows
    uids = np.random.default_rng(0).bytes(16 * rows)
    uid = pa.Array.from_buffers(pa.binary(16), rows, [None, pa.py_buffer(uids)])
    ids = pa.array(lists, pa.list_(pa.int32()))
    return pa.table({"uid": uid, "concept_ids": ids.take(np.arange(rows) % max(1, len(lists)))})


def draw_of(counts=COUNTS, **named) -> Draw:
    return Draw(**{"seed": 0, "stage": "it", "weight": np.asarray(counts, float), **named})


def least_draws(rows: pa.Table, draw: Draw) -> np.ndarray:
    pairs = Pairs.of(rows)
    return pairs.least(draw.of(rows, pairs))


def chi_square(hits: np.ndarray, trials: np.ndarray, p: np.ndarray) -> float:
    """Sum of squared deviations in units of their own variance, one a cell."""
    return float((((hits - trials * p) ** 2) / (trials * p * (1 - p))).sum())


def test_300_000_draws_of_each_concept_match_its_probability():
    counts = COUNTS[COUNTS > T]
    rows = rows_of([[0]], 300_000)
    hits = [(least_draws(rows, draw_of([count], stage=f"{count}")) < T).sum() for count in counts]
    many = np.full(len(counts), len(rows))
    assert chi_square(np.array(hits), many, T / counts) < 21  # 0.1 % of a chi-square of 5


def test_100_000_rows_of_several_concepts_match_the_product_of_their_probabilities():
    kinds = [[3], [4], [5, 6], [3, 7], [4, 5, 6, 7], [6, 7], [4, 4, 4]]
    rows = rows_of([sorted(set(kind)) for kind in kinds], 100_000)
    keep_N = least_draws(rows, draw_of()) < T
    chance_N = Pairs.of(rows).keep_probability(draw_of().probability(T))
    kind_N = np.arange(len(rows)) % 7
    trials = np.bincount(kind_N)
    hits, p = np.bincount(kind_N[keep_N], minlength=7), chance_N[:7]
    brute = [1 - np.prod([1 - min(1, T / COUNTS[e]) for e in set(kind)]) for kind in kinds]
    np.testing.assert_allclose(p, brute, rtol=1e-12)
    assert chi_square(hits, trials, p) < 25  # 0.1 % of a chi-square of 7
    assert abs(keep_N.sum() - chance_N.sum()) < 5 * np.sqrt((chance_N * (1 - chance_N)).sum())


def test_draws_of_a_row_are_independent_of_each_other():
    rows = rows_of([[0, 1]], 200_000)
    one, other = draw_of([1, 1]).of(rows, Pairs.of(rows)).reshape(-1, 2).T
    assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(len(rows))
    cells, _, _ = np.histogram2d(one, other, bins=10, range=[[0, 1], [0, 1]])
    assert chi_square(cells.ravel(), np.full(100, len(rows)), np.full(100, 0.01)) < 160


def test_a_concept_of_count_t_or_less_is_always_drawn():
    least = 1 - 2.0**-53  # the greatest u
    counts = np.concatenate([np.arange(1, 100_000), 2.0 ** np.arange(60), 3.0 ** np.arange(30)])
    assert (least * counts < counts).all()
    rows = rows_of([[i, 7] for i in range(3)], 30_000)
    assert (least_draws(rows, draw_of()) < T).all()


def test_a_draw_hangs_on_seed_stage_uid_and_concept_and_on_nothing_else():
    rows = rows_of([[0, 3], [1], [0, 2, 5]])
    whole = draw_of(np.ones(8)).of(rows, Pairs.of(rows))
    alone = [draw_of(np.ones(8)).of(r, Pairs.of(r)) for r in (rows[:1], rows[1:2], rows[2:])]
    np.testing.assert_array_equal(np.concatenate(alone), whole)
    less = rows_of([[3], [1], [5]])
    np.testing.assert_array_equal(draw_of(np.ones(8)).of(less, Pairs.of(less)), whole[[1, 2, 5]])
    for other in ({"seed": 1}, {"stage": "that"}):
        assert not set(draw_of(np.ones(8), **other).of(rows, Pairs.of(rows))) & set(whole)
    assert len(set(whole)) == 6


def test_no_rows_draw_nothing():
    rows = rows_of([])
    pairs = Pairs.of(rows)
    assert least_draws(rows, draw_of()).shape == (0,)
    assert pairs.keep_probability(draw_of().probability(T)).shape == (0,)


@pytest.mark.parametrize("t", [1, 0.5, 1e9, np.inf])
def test_probabilities_of_extreme_t_are_probabilities(t):
    p_E = draw_of([0, 1, 5, 10**10]).probability(t)
    assert ((p_E > 0) & (p_E <= 1)).all()
