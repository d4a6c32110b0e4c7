"""MinHash signatures, equal to datasketch's, and a key for each band of them."""

import numpy as np
from numpy.typing import NDArray

from clipmill.stages.ops.compiled import compiled

# Shapes: N texts; P pieces of all texts in a row; K permutations; B bands of R rows of a signature.

EMPTY = np.uint32(2**32 - 1)  # of a set without pieces


def permutations(count: int, seed: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """(K,) odd factors and (K,) terms of h -> a h + b modulo 2^32.

    Source: datasketch 2.0, scheme affine32, its default; RandomState's numbers are fixed for ever.
    """
    numbers = np.random.RandomState(seed)
    a_K = numbers.randint(0, 2**31, count, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return a_K, numbers.randint(0, 2**32, count, dtype=np.uint32)


def signatures(
    hash_P: NDArray[np.uint64], end_N: NDArray[np.int64], count: int, seed: int
) -> NDArray[np.uint32]:
    """(N, K) least permuted hash of each text's pieces: the share of equal ones estimates Jaccard.

    Source: datasketch 2.0, MinHash(num_perm=K, seed) of the pieces in UTF-8.
    """
    return _signatures(hash_P, end_N, *permutations(count, seed))


@compiled()
def _signatures(hash_P, end_N, a_K, b_K):
    least_NK = np.empty((len(end_N), len(a_K)), np.uint32)
    start = 0
    for n in range(len(end_N)):
        least_K = least_NK[n]
        least_K[:] = EMPTY
        for p in range(start, end_N[n]):
            x = np.uint32(hash_P[p])
            # MurmurHash3's finaliser, which spreads hashes that lie close together.
            x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B))
            x = np.uint32((x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35))
            x = np.uint32(x ^ (x >> np.uint32(16)))
            for k in range(len(a_K)):
                least_K[k] = min(least_K[k], np.uint32(a_K[k] * x + b_K[k]))
        start = end_N[n]
    return least_NK


def band_keys(signature_NK: NDArray[np.uint32], bands: int, rows: int) -> NDArray[np.uint64]:
    """(N, B) one key per band; rows of equal key b have band b equal.

    Error: other bands meet under one number with a chance of 2^-64 a pair: one comparison more.
    """
    band_NBR = signature_NK[:, : bands * rows].reshape(len(signature_NK), bands, rows)
    start_B = np.arange(1, bands + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    key_NB = np.broadcast_to(start_B, band_NBR.shape[:2]).copy()  # tells the bands apart
    for row in range(rows):
        key_NB ^= band_NBR[:, :, row]
        key_NB *= np.uint64(0xBF58476D1CE4E5B9)  # splitmix64's first factor: odd, so one to one
        key_NB ^= key_NB >> np.uint64(29)
    return key_NB
