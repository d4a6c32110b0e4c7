"""Near pairs of codes against all pairs: every one, whatever the radius, in crowds too."""

import numpy as np

from clipmill.stages.dedup import _hamming as hamming
from clipmill.stages.dedup._hamming import crowd_pairs, every_pair, keys, masks, near_pairs
from clipmill.stages.dedup._linkage import fall
from clipmill.stages.dedup._runs import neighbours, runs


def cloud(rng, codes: int) -> np.ndarray:
    """Distinct codes, some of them a few bits apart."""
    code_N = rng.integers(0, 2**64, 3, dtype=np.uint64)[rng.integers(0, 3, codes)]
    for _ in range(rng.integers(1, 14)):
        flip_N = rng.integers(0, 2, codes, dtype=np.uint64)
        code_N ^= flip_N << rng.integers(0, 64, codes, dtype=np.uint64)
    return np.unique(code_N)


def found(code_N: np.ndarray, radius: int) -> dict:
    key_NK = keys(code_N, radius)
    owner = np.repeat(np.arange(len(code_N)), key_NK.shape[1])
    a, b, distance = near_pairs(key_NK.ravel(), code_N[owner], radius)
    ends = np.sort(owner[np.stack([a, b])], axis=0)
    return dict(zip(zip(*ends.tolist(), strict=True), distance.tolist(), strict=True))


def groups_by_level(pairs: dict, nodes: int, radius: int) -> list:
    """The root of each node over pairs up to each distance."""
    levels = []
    for level in range(1, radius + 1):
        near = [pair for pair, distance in pairs.items() if distance <= level]
        a, b = np.array(near, np.int64).reshape(-1, 2).T
        levels.append(fall(a, b, np.zeros(len(a), np.float32), nodes)[1].tolist())
    return levels


def all_pairs(code_N: np.ndarray, radius: int) -> dict:
    distance_NN = np.bitwise_count(code_N[:, None] ^ code_N[None])
    a, b = np.nonzero(np.triu(distance_NN <= radius, 1))
    return dict(
        zip(zip(a.tolist(), b.tolist(), strict=True), distance_NN[a, b].tolist(), strict=True)
    )


def test_every_near_pair_is_found_and_no_other():
    rng = np.random.default_rng(0)
    for _ in range(300):
        code_N, radius = cloud(rng, int(rng.integers(1, 40))), int(rng.integers(0, 11))
        assert found(code_N, radius) == all_pairs(code_N, radius)


def test_every_pair_comes_once_of_all_the_keys_under_which_it_meets(monkeypatch):
    monkeypatch.setattr(hamming, "CROWD_CODES", 2)
    rng = np.random.default_rng(2)
    for _ in range(150):
        code_N, radius = cloud(rng, int(rng.integers(1, 40))), int(rng.integers(0, 11))
        key_NK = keys(code_N, radius)
        owner = np.repeat(np.arange(len(code_N)), key_NK.shape[1])
        a, b, distance = every_pair(key_NK.ravel(), code_N[owner], radius)
        ends = np.sort(owner[np.stack([a, b])], axis=0).T.tolist()
        once = sorted(zip(map(tuple, ends), distance.tolist(), strict=True))
        assert once == sorted(all_pairs(code_N, radius).items())


def test_a_crowd_hangs_together_at_each_distance_as_all_its_pairs_do(monkeypatch):
    monkeypatch.setattr(hamming, "CROWD_CODES", 2)
    monkeypatch.setattr(hamming, "LOOK_UP", 0)
    rng = np.random.default_rng(1)
    for _ in range(100):
        code_N, radius = cloud(rng, int(rng.integers(3, 60))), int(rng.integers(1, 4))
        pairs, every = found(code_N, radius), all_pairs(code_N, radius)
        assert pairs.items() <= every.items()
        nodes = len(code_N)
        assert groups_by_level(pairs, nodes, radius) == groups_by_level(every, nodes, radius)


def test_a_crowd_of_many_codes_takes_no_comparison_of_all_of_them():
    code_C = np.arange(2**17, dtype=np.uint64)  # of 8.6 billion pairs
    a, _, distance = crowd_pairs(code_C, 3)
    assert len(a) == len(code_C) - 1
    assert (distance == 1).all()


def test_a_crowd_in_which_many_bits_vary_is_compared_and_not_looked_up(monkeypatch):
    """Of 10 bits among 64 there are 10^11 choices."""
    looked_up = []
    monkeypatch.setattr(hamming, "combinations", lambda *few: looked_up.append(few) or ())
    code_C = cloud(np.random.default_rng(3), 200)
    a, b, distance = crowd_pairs(code_C, 10)
    pairs = dict(zip(zip(a.tolist(), b.tolist(), strict=True), distance.tolist(), strict=True))
    every = all_pairs(code_C, 10)
    nodes = len(code_C)
    assert groups_by_level(pairs, nodes, 10) == groups_by_level(every, nodes, 10)
    assert every
    assert not looked_up


def test_two_codes_that_differ_in_the_radius_share_a_key_wherever_the_bits_are():
    rng = np.random.default_rng(0)
    for radius in range(1, 11):
        assert np.bitwise_or.reduce(masks(radius)) == 2**64 - 1
        flipped_N64 = rng.permuted(np.tile(np.arange(64, dtype=np.uint64), (200, 1)), axis=1)
        other_N = np.bitwise_xor.reduce(np.uint64(1) << flipped_N64[:, :radius], axis=1)
        key_NK = keys(np.append(other_N, np.uint64(0)), radius)
        assert (key_NK[:-1] == key_NK[-1]).any(axis=1).all(), radius


def test_a_code_has_another_key_under_each_mask():
    key_NK = keys(np.array([0, 2**64 - 1], np.uint64), 3)
    assert len(np.unique(key_NK)) == key_NK.size


def test_neighbours_are_every_pair_of_a_run_or_those_within_reach():
    first, size = runs(np.array([3, 3, 3, 3, 5, 7, 7], np.uint64))
    assert (first.tolist(), size.tolist()) == ([0, 4, 5], [4, 1, 2])
    every = [pair for ab in neighbours(first, size) for pair in np.transpose(ab).tolist()]
    assert sorted(every) == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3], [5, 6]]
    near = [pair for ab in neighbours(first, size, 1) for pair in np.transpose(ab).tolist()]
    assert sorted(near) == [[0, 1], [1, 2], [2, 3], [5, 6]]


def test_no_codes_have_no_pairs():
    nothing = np.empty(0, np.uint64)
    assert [len(part) for part in near_pairs(nothing, nothing, 3)] == [0, 0, 0]
