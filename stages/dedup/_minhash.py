"""Compiled loops of dedup.minhash: datasketch's signatures, and the nearest of a few texts."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.stages.dedup import _shingles as shingles
from clipmill.stages.dedup._shingles import entered, slot_of, slots_for
from clipmill.stages.ops.compiled import compiled

# Shapes: N texts; P pieces of all texts in a row; K permutations; B bands of R rows of a
# signature; S texts of the few, I distinct pieces of them all, O owners of these in a row, N texts
# of the many, P pieces of theirs in a row, T slots.

EMPTY = np.uint32(2**32 - 1)  # of a set without pieces


def permutations(count: int, seed: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Returns (K,) odd factors and (K,) terms of h -> a h + b modulo 2^32.

    Source: datasketch 2.0, scheme affine32, its default; RandomState's numbers are fixed for ever.
    """
    numbers = np.random.RandomState(seed)
    a_K = numbers.randint(0, 2**31, count, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return a_K, numbers.randint(0, 2**32, count, dtype=np.uint32)


def signatures(
    hash_P: NDArray[np.uint64], end_N: NDArray[np.int64], count: int, seed: int
) -> NDArray[np.uint32]:
    """Returns (N, K) the least permuted hashes of each text; equal ones estimate Jaccard.

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
    """Returns (N, B) one key per band; rows of equal key b have band b equal.

    Error: other bands share a key with a chance of 2^-64 a pair, which costs one comparison more.
    """
    band_NBR = signature_NK[:, : bands * rows].reshape(len(signature_NK), bands, rows)
    start_B = np.arange(1, bands + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    key_NB = np.broadcast_to(start_B, band_NBR.shape[:2]).copy()  # tells the bands apart
    for row in range(rows):
        key_NB ^= band_NBR[:, :, row]
        key_NB *= np.uint64(0xBF58476D1CE4E5B9)  # splitmix64's first factor: odd, so one to one
        key_NB ^= key_NB >> np.uint64(29)
    return key_NB


BLOCK_BYTES = 1 << 20  # of text at a time


class TextIndex:
    """An index of the pieces of a few plain texts. Equal texts have equal numbers."""

    def __init__(
        self, text: pa.Array, name_S: NDArray[np.uint64], unit: shingles.Unit, size: int
    ) -> None:
        self.name_S, self.unit, self.size = name_S, unit, size
        pieces = shingles.pieces(text, unit, size)
        number_O, end_S = shingles.distinct(shingles.numbers(pieces), pieces.end)
        self.pieces_S = np.diff(end_S, prepend=0)
        owner_O = np.repeat(np.arange(len(text)), self.pieces_S)
        number_I, item_O = np.unique(number_O, return_inverse=True)
        self.owner_O = owner_O[np.argsort(item_O, kind="stable")]
        self.end_I = np.cumsum(np.bincount(item_O, minlength=len(number_I)))
        self.table = _indexed(number_I, slots_for(len(number_I)))

    def nearest(self, text: pa.Array, name_N: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Returns (S,) each one's greatest Jaccard to another of these texts; 0 if unrelated.

        `name_N` has the number of each text.
        """
        best_S = np.zeros(len(self.name_S))
        for part in shingles.blocks(shingles.sizes(text), BLOCK_BYTES):
            pieces = shingles.pieces(text[part], self.unit, self.size)
            number_P = shingles.numbers(pieces)
            slots = slots_for(int(np.diff(pieces.end, prepend=0).max(initial=0)))
            texts = (number_P, pieces.end, name_N[part], slots)
            index = (*self.table, self.end_I, self.owner_O)
            _nearest(texts, index, self.pieces_S, self.name_S, best_S)
        return best_S


@compiled()
def _indexed(number_I, slots):
    """Builds a table of slots for the numbers, and the index of the number in each slot."""
    held_T, round_T = np.empty(slots, np.uint64), np.zeros(slots, np.int64)
    which_T = np.empty(slots, np.int64)
    for i in range(len(number_I)):
        entered(held_T, round_T, number_I[i], 1)
        which_T[slot_of(held_T, round_T, number_I[i], 1)] = i
    return held_T, round_T, which_T


@compiled()
def _nearest(texts, index, pieces_S, name_S, best_S):
    """Raises best_S to the Jaccard of each text, if that is greater."""
    number_P, end_N, name_N, slots = texts
    held_T, round_T, which_T, end_I, owner_O = index
    own, own_round = np.empty(slots, np.uint64), np.zeros(slots, np.int64)
    shared_S = np.zeros(len(name_S), np.int64)
    start = 0
    for n in range(len(end_N)):
        size = 0
        for p in range(start, end_N[n]):
            if not entered(own, own_round, number_P[p], n + 1):
                continue
            size += 1
            slot = slot_of(held_T, round_T, number_P[p], 1)
            if round_T[slot] == 1:
                i = which_T[slot]
                for o in range(end_I[i - 1] if i else 0, end_I[i]):
                    shared_S[owner_O[o]] += 1
        start = end_N[n]
        for s in range(len(name_S)):
            both = size + pieces_S[s] - shared_S[s]
            # A division for each would take as long as all the rest.
            if shared_S[s] > best_S[s] * both and name_S[s] != name_N[n]:
                best_S[s] = shared_S[s] / both
            shared_S[s] = 0
