"""Finds all pairs of 64-bit codes within a Hamming distance, without comparing all.

Pigeonholes: of r + 2 blocks of bits, two codes that differ in r bits share at least two. So each
code is indexed under every pair of blocks, and compared with codes that share both.
"""

from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

from clipmill.pipeline.errors import StageError
from clipmill.stages.dedup._runs import neighbours, runs

# Shapes: N indexed codes (each once a key), K keys a code, R runs of equal keys, C codes of one
# crowd.

CROWD_CODES = 4096  # codes under one key above which neighbours are looked up, if that is quicker
LOOK_UP = 8  # comparisons that take as long as one look-up (6 measured, of 6,000 codes)
FOREST_PAIRS = 2**21  # pairs above which only a forest of them is kept
MAX_PAIRS = 2**25  # most pairs if all of them must be kept: 1 GB

Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]


def masks(radius: int) -> NDArray[np.uint64]:
    """Returns (K,) the bits of every pair of blocks; none for radius 0: equal codes are no pair."""
    if not radius:
        return np.empty(0, np.uint64)
    bits = np.array_split(np.arange(64, dtype=np.uint64), radius + 2)
    blocks = [np.bitwise_or.reduce(np.uint64(1) << block) for block in bits]
    return np.array([a | b for a, b in combinations(blocks, 2)], np.uint64)


def keys(code_N: NDArray[np.uint64], radius: int) -> NDArray[np.uint64]:
    """Returns (N, K) the keys of each code; codes that share the bits of mask k have key k equal.

    Error: other keys are equal with a chance of 2^-64 a pair, which costs one comparison more.
    """
    mask_K = masks(radius)
    return _key(code_N[:, None] & mask_K, np.arange(len(mask_K)))


def _key(bits: NDArray[np.uint64], mask: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Returns the hash of the masked bits and of the mask's number."""
    return _splitmix(_splitmix(bits) + mask.astype(np.uint64))


def _splitmix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Applies the first half of splitmix64's finaliser: one to one, each bit changes many."""
    return (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)


def near_pairs(key_N: NDArray[np.uint64], code_N: NDArray[np.uint64], radius: int) -> Pairs:
    """Returns pairs of distinct codes with equal keys, at most `radius` apart, and distances.

    Above FOREST_PAIRS, or in a crowd: at least a minimum spanning forest of them.
    """
    order_N = np.lexsort((code_N, key_N))
    key_N, code_N = key_N[order_N], code_N[order_N]
    first_R, size_R = runs(key_N)
    is_crowd_R = size_R > CROWD_CODES
    pairs: list[Pairs] = []
    for start, size in zip(first_R[is_crowd_R], size_R[is_crowd_R], strict=True):
        a, b, distance = crowd_pairs(code_N[start : start + size], radius)
        pairs.append((start + a, start + b, distance))
    pairs = _compared(pairs, first_R[~is_crowd_R], size_R[~is_crowd_R], code_N, radius)
    a, b, distance = _joined(pairs)
    return order_N[a], order_N[b], distance


def _compared(
    pairs: list[Pairs],
    first_R: NDArray[np.int64],
    size_R: NDArray[np.int64],
    code_N: NDArray[np.uint64],
    radius: int,
) -> list[Pairs]:
    """Returns the pairs and those inside each run; a forest of them above FOREST_PAIRS."""
    count = 0
    for a, b in neighbours(first_R, size_R):
        distance = np.bitwise_count(code_N[a] ^ code_N[b])
        near = np.flatnonzero((distance <= radius) & (distance > 0))
        pairs.append((a[near], b[near], distance[near]))
        count += len(near)
        if count > FOREST_PAIRS:
            pairs, _ = _thinned(pairs, len(code_N))
            count = 0
    return pairs


def every_pair(key_N: NDArray[np.uint64], code_N: NDArray[np.uint64], radius: int) -> Pairs:
    """Returns all pairs of distinct codes within `radius`, each under its first equal key only.

    Raises StageError above MAX_PAIRS.
    """
    order_N = np.argsort(key_N, kind="stable")
    key_N, code_N = key_N[order_N], code_N[order_N]
    mask_K = masks(radius)
    pairs: list[Pairs] = []
    count = 0
    for a, b in neighbours(*runs(key_N)):
        differs = code_N[a] ^ code_N[b]
        distance = np.bitwise_count(differs)
        near = np.flatnonzero((distance <= radius) & (distance > 0))
        first = ((differs[near, None] & mask_K) == 0).argmax(axis=1)  # mask where the two agree
        near = near[_key(code_N[a[near]] & mask_K[first], first) == key_N[a[near]]]
        pairs.append((a[near], b[near], distance[near]))
        count += len(near)
        if count > MAX_PAIRS:
            raise StageError(
                found=f"more than {MAX_PAIRS:,} pairs within {radius} bits in one partition",
                where="key `pairs`",
                do="lower max_distance, or leave `pairs` out: the columns hold no pairs",
            )
    a, b, distance = _joined(pairs)
    return order_N[a], order_N[b], distance


def crowd_pairs(code_C: NDArray[np.uint64], radius: int) -> Pairs:
    """Returns a minimum spanning forest of sorted codes, of pairs within `radius`.

    Kruskal's algorithm: at each distance, looks up the neighbours of all codes outside the largest
    group. Every edge that joins two groups has an end there. O(C log C) if few bits vary; if there
    are more neighbours to look up than pairs to compare, compares all.
    """
    varies = np.bitwise_or.reduce(code_C) ^ np.bitwise_and.reduce(code_C)
    bits = [np.uint64(1) << np.uint64(bit) for bit in range(64) if varies >> np.uint64(bit) & 1]
    pairs: list[Pairs] = []
    root_C = np.arange(len(code_C))
    for level in range(1, radius + 1):
        largest = np.bincount(root_C).argmax()
        outside = np.flatnonzero(root_C != largest)
        if not len(outside):
            break
        if 2 * LOOK_UP * len(outside) * comb(len(bits), level) > len(code_C) ** 2:
            run = np.array([0]), np.array([len(code_C)])
            pairs, _ = _thinned(_compared([], *run, code_C, radius), len(code_C))
            break
        count = 0
        for flipped in combinations(bits, level):
            flipped_code = code_C[outside] ^ np.bitwise_or.reduce(flipped)
            index = np.minimum(np.searchsorted(code_C, flipped_code), len(code_C) - 1)
            hit = (code_C[index] == flipped_code) & (root_C[index] != root_C[outside])
            a, b = outside[hit], index[hit]
            pairs.append((a, b, np.full(len(a), level, np.uint8)))
            count += len(a)
            if count > len(code_C):  # bounds memory if many bits vary
                pairs, root_C = _thinned(pairs, len(code_C))
                count = 0
        pairs, root_C = _thinned(pairs, len(code_C))
    return pairs[0]


def _thinned(pairs: list[Pairs], codes: int) -> tuple[list[Pairs], NDArray[np.int64]]:
    """Returns a minimum spanning forest of the pairs, and (C,) the root of each code's tree."""
    from clipmill.stages.dedup._linkage import fall  # compiled: a plan needs the masks alone

    a, b, distance = _joined(pairs)
    edge_C, root_C = fall(a, b, distance.astype(np.float32), codes)
    kept = edge_C[edge_C >= 0]
    return [(a[kept], b[kept], distance[kept])], root_C


def _joined(pairs: list[Pairs]) -> Pairs:
    nothing = np.empty(0, np.int64)
    pairs = [(nothing, nothing, np.empty(0, np.uint8)), *pairs]
    a, b, distance = zip(*pairs, strict=True)
    return np.concatenate(a), np.concatenate(b), np.concatenate(distance)
