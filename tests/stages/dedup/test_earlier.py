"""The most similar earlier vector: equal to all pairs in float64, at every size of block."""

import tracemalloc
from unittest.mock import Mock

import numpy as np
import pytest

from clipmill.stages.dedup import _earlier as earlier
from clipmill.stages.dedup._earlier import distinct, most_similar_earlier

PRECISIONS = ("float32", "bfloat16")


def all_pairs(row_ND):
    """Every cosine in float64, rounded to float32 at last; the first of equal ones."""
    rows = len(row_ND)
    wide_ND = row_ND.astype(np.float64)
    unit_ND = wide_ND / np.sqrt(np.sum(wide_ND * wide_ND, axis=1, keepdims=True))
    cosine_NN = np.clip((unit_ND @ unit_ND.T).astype(np.float32), -1, 1)
    cosine_NN[np.triu_indices(rows)] = -np.inf
    place_N = cosine_NN.argmax(axis=1)
    cosine_N = cosine_NN[np.arange(rows), place_N]
    cosine_N[:1], place_N[:1] = -1, -1
    return cosine_N, place_N


def drawn(rng):
    """Vectors at random, or copies of a few, or these stretched and moved by little or nothing."""
    rows, width = int(rng.integers(1, 60)), int(rng.integers(1, 20))
    row_ND = rng.standard_normal((rows, width))
    kind = rng.integers(0, 3)
    if kind:
        row_ND = row_ND[rng.integers(0, max(1, rows // 3), rows)]
    if kind == 2:
        row_ND *= rng.choice([1, 2, 3, 4], (rows, 1))
        row_ND += rng.standard_normal((rows, width)) * rng.choice([0, 1e-7, 1e-4, 1e-2])
    return row_ND.astype(np.float32)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_values_are_those_of_all_pairs_in_float64(precision, monkeypatch):
    rng = np.random.default_rng(0)
    for _ in range(400):
        monkeypatch.setattr(earlier, "GROUP", group := int(rng.choice([1, 2, 8, 16])))
        monkeypatch.setattr(earlier, "STRIP", group * int(rng.integers(1, 5)))
        monkeypatch.setattr(earlier, "BLOCK", int(rng.integers(1, 40)))
        row_ND = drawn(rng)
        cosine_N, place_N = most_similar_earlier(row_ND, precision)
        want_N, first_N = all_pairs(row_ND)
        np.testing.assert_array_equal(cosine_N, want_N)
        np.testing.assert_array_equal(place_N, first_N)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_wide_vectors_whose_cosines_differ_by_less_than_float32_can_tell(precision):
    rng = np.random.default_rng(0)
    row_ND = np.repeat(rng.standard_normal((1, 512)), 300, axis=0)
    row_ND += rng.standard_normal((300, 512)) * 1e-3  # all cosines within 1e-7 of 1
    row_ND = row_ND.astype(np.float32)
    for got, want in zip(most_similar_earlier(row_ND, precision), all_pairs(row_ND), strict=True):
        np.testing.assert_array_equal(got, want)


def test_equal_vectors_are_compared_once(monkeypatch):
    row_ND = np.tile(np.arange(1, 513, dtype=np.float32), (1_000, 1))
    row_ND[7] = -row_ND[7]
    of_distinct = Mock(wraps=earlier._of_distinct)
    monkeypatch.setattr(earlier, "_of_distinct", of_distinct)
    cosine_N, place_N = most_similar_earlier(row_ND)
    assert len(of_distinct.call_args.args[0]) == 2  # 100,000 as pairs would take minutes
    assert cosine_N[:3].tolist() == [-1, 1, 1]
    assert (cosine_N[7], place_N[7], place_N[-1]) == (-1, 0, 0)
    assert (cosine_N == 1).sum() == 1_000 - 2


def test_stretched_vectors_are_as_near_as_copies():
    row_ND = np.array([[3, 4], [1, 0], [6, 8], [-1, 0], [0.3, 0.4]], np.float32)
    cosine_N, place_N = most_similar_earlier(row_ND)
    assert cosine_N.tolist() == pytest.approx([-1, 0.6, 1, -0.6, 1])
    assert place_N.tolist() == [-1, 0, 0, 0, 0]


def test_an_opposite_vector_has_the_value_of_a_first_one_and_a_neighbour():
    cosine_N, place_N = most_similar_earlier(np.array([[1, 0], [-2, 0]], np.float32))
    assert (cosine_N.tolist(), place_N.tolist()) == ([-1, -1], [-1, 0])


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_lengths_past_what_float32_can_square_are_no_matter(scale):
    row_ND = np.array([[3, 4], [4, 3]], np.float32) * np.float32(scale)
    assert most_similar_earlier(row_ND)[0].tolist() == pytest.approx([-1, 0.96])


def test_distinct_vectors_are_numbered_as_they_come():
    row_ND = np.array([[2, 0], [1, 0], [2, 0], [0, 5], [1, 0]], np.float32)
    place_U, kind_N = distinct(row_ND, np.linalg.norm(row_ND, axis=1))
    assert (place_U.tolist(), kind_N.tolist()) == ([0, 1, 3], [0, 1, 0, 2, 1])


def test_vectors_as_long_as_each_other_are_no_copies_for_that():
    row_ND = np.array([[3, 4], [4, 3], [5, 0], [4, 3]], np.float32)
    place_U, kind_N = distinct(row_ND, np.full(4, 5.0))
    assert (place_U.tolist(), kind_N.tolist()) == ([0, 1, 2], [0, 1, 2, 1])


def test_no_vectors_have_no_neighbours():
    cosine_N, place_N = most_similar_earlier(np.empty((0, 8), np.float32))
    assert (len(cosine_N), len(place_N)) == (0, 0)


def test_memory_grows_with_the_vectors_and_not_with_their_pairs():
    row_ND = np.random.default_rng(0).standard_normal((8_000, 8), dtype=np.float32)
    most_similar_earlier(row_ND[:2])  # compiles, which takes memory of its own
    tracemalloc.start()
    most_similar_earlier(row_ND)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 50e6  # all pairs take 256 MB


def test_the_gap_of_bfloat16_covers_what_factors_and_products_lose_to_rounding():
    rng = np.random.default_rng(0)
    whole_ND = rng.integers(-18, 19, (20_000, 8)).astype(np.float32)
    whole_ND = whole_ND[np.square(whole_ND).sum(axis=1) == 1024]  # over 32: units of few bits
    above_D = np.full(16, 0.25 + 0.99 * 2**-10, np.float32)  # rounds down to 0.25: 2^-8 off
    above_D[-1] = np.sqrt(1 - np.sum(above_D[:-1] ** 2))
    for row_ND in (whole_ND, above_D[None]):
        row_ND = np.concatenate([row_ND, -row_ND])  # whose mean is 0
        wide_ND = row_ND.astype(np.float64)
        length_N = np.linalg.norm(wide_ND, axis=1)
        scores, gap = earlier._coarse(row_ND, length_N, "bfloat16")
        every = slice(0, len(row_ND))
        off_NN = scores(every, every) - wide_ND @ wide_ND.T / np.outer(length_N, length_N)
        assert np.ptp(off_NN, axis=0).max() < gap
