"""Quotas: a solver of quadratic programs, known answers, growth; every row's rank at every size."""

import numpy as np
import quadprog

from clipmill.stages.select._clustered import UNIT
from clipmill.stages.select._quotas import Quotas, probabilities

CASES = 500


def solved(wanted_K, least_K, most_K, total):
    """By an active-set solver: the least |x - wanted|^2 with the sum and within the bounds."""

    K = len(wanted_K)
    bounds_K2K1 = np.hstack([np.ones((K, 1)), np.eye(K), -np.eye(K)])
    # It calls a program without any room inconsistent: 1e-11 a bound.
    right = np.concatenate([[total], least_K - 1e-11, -most_K - 1e-11])
    return quadprog.solve_qp(np.eye(K), wanted_K, bounds_K2K1, right, meq=1)[0]


def quotas(target_K, least_K, most_K, total):
    """(K,) the point within the bounds nearest to `target_K` of that sum, by bisection."""
    low, high = (least_K - target_K).min(initial=0), (most_K - target_K).max(initial=0)
    for _ in range(200):
        level = low + (high - low) / 2
        if not low < level < high:
            break
        if np.clip(target_K + level, least_K, most_K).sum() < total:
            low = level
        else:
            high = level
    free_K = (target_K + high > least_K) & (target_K + high < most_K)
    if free_K.any():  # then the level is known in one step, without the rounding of a large sum
        bound_K = np.clip(target_K + high, least_K, most_K)[~free_K]
        high = (total - bound_K.sum() - target_K[free_K].sum()) / free_K.sum()
    return np.clip(target_K + high, least_K, most_K)


def drawn(rng):
    """Clusters of any shape: complexities, sizes, balance; ties and single rows among them."""
    K = int(rng.integers(1, 12))
    size_K = rng.integers(1, rng.choice([2, 6, 40, 300]), K)
    if rng.random() < 0.2:
        size_K[:] = size_K[0]
    complexity_K = rng.random(K) * rng.choice([0.01, 0.1, 1, 5])
    if rng.random() < 0.3:
        complexity_K = np.round(complexity_K, 1)
    return probabilities(complexity_K, 0.1), size_K, float(rng.choice([0, 0.2, 0.5, 1]))


def brute(p_K, size_K, balance, rows):
    """Probabilities and bounds of this size, as published but for a least quota that is whole."""
    K = len(size_K)
    least = balance * rows / K if balance else min(1, rows / K)
    return rows * p_K / UNIT, np.minimum(least, size_K - 1), size_K.astype(float)


def test_the_known_answer_of_six_clusters():
    wanted_K = np.array([3.535, 0.09, 0.009, 0.007, 20.613, 55.745])
    size_K = np.arange(10, 70, 10.0)
    found_K = quotas(wanted_K, np.ones(6), size_K, 80)
    np.testing.assert_allclose(found_K, [2.571, 1, 1, 1, 19.649, 54.78], atol=1e-3)
    p_K = np.rint(wanted_K / 80 * UNIT).astype(np.int64)
    at_80_K = Quotas.of(p_K, size_K.astype(int), 0).at(80)
    np.testing.assert_allclose(at_80_K, found_K, atol=1e-9)


def test_quotas_equal_a_quadratic_program_and_whole_ones_are_within_one():
    rng = np.random.default_rng(0)
    worst, whole = 0.0, 0.0
    for _ in range(CASES):
        p_K, size_K, balance = drawn(rng)
        rows = int(rng.integers(1, size_K.sum() + 1))
        wanted_K, least_K, most_K = brute(p_K, size_K, balance, rows)
        expected_K = solved(wanted_K, least_K, most_K, rows)
        by_level_K = quotas(wanted_K, least_K, most_K, rows)
        for found_K in (by_level_K, Quotas.of(p_K, size_K, balance).at(rows)):
            worst = max(worst, np.abs(found_K - expected_K).max())
            whole = max(whole, np.abs(np.floor(found_K + 0.5) - np.rint(expected_K)).max())
    assert worst < 1e-9
    assert whole <= 1


def test_with_published_whole_least_quotas_clusters_at_their_least_have_less_than_a_row_fewer():
    rng = np.random.default_rng(1)
    for _ in range(150):
        p_K, size_K, balance = drawn(rng)
        balance = balance or 0.7
        rows = int(rng.integers(1, size_K.sum() + 1))
        wanted_K, least_K, most_K = brute(p_K, size_K, balance, rows)
        whole_K = np.minimum(int(balance * rows / len(size_K)), size_K - 1)
        published_K = solved(wanted_K, whole_K, most_K, rows)
        more_K = Quotas.of(p_K, size_K, balance).at(rows) - published_K
        assert (more_K < 1).all()
        fewer = (published_K < least_K).sum()  # a row at most for each of these, others lose
        assert -more_K.min() <= fewer + 1e-9


def test_quotas_grow_with_every_row_and_sum_to_it():
    rng = np.random.default_rng(2)
    for _ in range(70):
        p_K, size_K, balance = drawn(rng)
        found = Quotas.of(p_K, size_K, balance)
        size_range = np.linspace(0, size_K.sum(), 150)
        at_NK = np.array([found.at(float(rows)) for rows in size_range])
        assert (np.diff(at_NK, axis=0) >= -1e-9).all()
        np.testing.assert_allclose(at_NK.sum(axis=1), size_range, atol=1e-9)
        np.testing.assert_allclose(at_NK[-1], size_K, atol=1e-9)


def test_whole_least_quotas_would_not_nest():
    """Why the least quota is real: with int(balance * N / K) a cluster loses a row as N grows."""
    wanted_K, size_K = np.array([0.96, 0.02, 0.01, 0.01]), np.full(4, 100.0)

    def at(rows):
        return quotas(rows * wanted_K, np.full(4, float(rows // 8)), size_K, rows)

    assert at(16)[0] < at(15)[0]


def test_a_row_enters_where_the_quota_reaches_its_middle():
    rng = np.random.default_rng(3)
    for _ in range(70):
        p_K, size_K, balance = drawn(rng)
        found = Quotas.of(p_K, size_K, balance)
        cluster_M = np.repeat(np.arange(len(size_K)), size_K)
        rank_M = np.concatenate([np.arange(1, size + 1) for size in size_K])
        enters_M = found.enters(cluster_M, rank_M)
        some = rng.integers(0, len(enters_M), 20)
        at_S = [found.at(enters_M[m])[cluster_M[m]] for m in some]
        np.testing.assert_allclose(at_S, rank_M[some] - 0.5, atol=1e-9)
        same_M = cluster_M[1:] == cluster_M[:-1]
        assert (np.diff(enters_M)[same_M] >= 1 - 1e-9).all()  # so rows of a cluster never tie


def test_shares_of_complexities():
    assert probabilities(np.array([0.3, 0.3, np.nan, 0.3]), 0.1).tolist() == [UNIT / 4] * 4
    assert probabilities(np.full(2, np.nan), 0.1).tolist() == [UNIT / 2] * 2  # k = 1 has no others
    assert probabilities(np.array([0.1, 0.3]), 1e-6).tolist() == [0, UNIT]  # all to the widest
    even_K = probabilities(np.array([0.1, 0.3]), 1e9)
    assert abs(np.diff(even_K)[0]) < UNIT / 1e6
    two_K = probabilities(np.array([0.0, 0.1]), 0.1) / UNIT
    np.testing.assert_allclose(two_K, [1 / (1 + np.e), np.e / (1 + np.e)])


def test_the_widest_cluster_takes_all_until_its_size_binds():
    found = Quotas.of(np.array([0, int(UNIT)]), np.array([50, 10]), 0.5)
    np.testing.assert_allclose(found.at(8), [2, 6])  # a quarter each is the least
    np.testing.assert_allclose(found.at(30), [20, 10])


def test_one_cluster_keeps_just_what_is_asked():
    found = Quotas.of(np.array([int(UNIT)]), np.array([7]), 0.5)
    np.testing.assert_allclose([found.at(n)[0] for n in range(8)], range(8))
    np.testing.assert_allclose(found.enters(np.zeros(7, int), np.arange(1, 8)), np.arange(7) + 0.5)


def test_without_clusters_there_are_no_quotas():
    found = Quotas.of(np.empty(0, np.int64), np.empty(0, np.int64), 0.5)
    assert len(found.at(0)) == 0
    assert len(quotas(np.empty(0), np.empty(0), np.empty(0), 0)) == 0
