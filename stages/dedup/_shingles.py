"""Overlapping pieces of texts (shingles), and sets of them: hashed, compared exactly."""

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.stages.ops.compiled import compiled

# Shapes: N texts; U units (characters or words), P pieces, M distinct pieces, of all texts in a
# row; L lanes; E pairs of texts.

Unit = Literal["character", "word"]

LANES = 256  # messages hashed side by side; their words lie in a processor's nearest cache
ONE_BLOCK = 55  # bytes: a longer message takes SHA-1 more than one block
START_5 = np.array([0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0], np.uint32)


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """Byte ranges of the pieces of texts in one buffer; text n has the pieces up to end[n]."""

    utf8: NDArray[np.uint8]
    start: NDArray[np.int64]  # (P,)
    stop: NDArray[np.int64]  # (P,)
    end: NDArray[np.int64]  # (N,)


def pieces(text: pa.Array, unit: Unit, size: int) -> Pieces:
    """Returns all runs of `size` characters or words of each text; a shorter text is one piece."""
    _, offsets, data = text.buffers()
    if data is None:
        data = pa.py_buffer(b"")
    bound = np.frombuffer(offsets, np.int64)[text.offset : text.offset + len(text) + 1]
    utf8 = np.frombuffer(data, np.uint8)
    start_P, stop_P, end_N = _pieces(utf8, bound, unit == "word", size)
    return Pieces(utf8=utf8, start=start_P, stop=stop_P, end=end_N)


@compiled()
def _pieces(utf8, bound, by_word, size):
    end_N = np.empty(max(0, len(bound) - 1), np.int64)
    count = 0
    for n in range(len(end_N)):
        units = 0
        for i in range(bound[n], bound[n + 1]):
            units += _is_start(utf8, i, bound[n], by_word)
        count += max(units - size + 1, 1) if units else 0
        end_N[n] = count
    start_P, stop_P = np.empty(count, np.int64), np.empty(count, np.int64)
    begin = 0
    for n in range(len(end_N)):
        unit = 0
        for i in range(bound[n], bound[n + 1]):
            if _is_start(utf8, i, bound[n], by_word):
                if begin + unit < end_N[n]:
                    start_P[begin + unit] = i
                if unit >= size:
                    stop_P[begin + unit - size] = i - by_word  # the space goes with no word
                unit += 1
        begin = end_N[n]
        if unit:
            stop_P[begin - 1] = bound[n + 1]
    return start_P, stop_P, end_N


@compiled()
def _is_start(utf8, i, first, by_word):
    """Returns whether a word, or a character, begins at this byte of a text."""
    if by_word:
        return i == first or utf8[i - 1] == 32
    return utf8[i] & 0xC0 != 0x80  # else a later byte of the same character


def sizes(text: pa.Array) -> NDArray[np.int64]:
    """Returns (N,) bytes of each text in UTF-8."""
    return pc.binary_length(text).to_numpy().astype(np.int64)


def digests(text: pa.Array | pa.ChunkedArray) -> NDArray[np.uint64]:
    """Returns (N,) a 64-bit hash of each text; two texts share one with a chance of 2^-64."""
    blake = hashlib.blake2b  # takes one text at a time
    digest = b"".join(blake(item.encode(), digest_size=8).digest() for item in text.to_pylist())
    return np.frombuffer(digest, "<u8").astype(np.uint64)


def hashes(pieces: Pieces) -> NDArray[np.uint64]:
    """Returns (P,) the first 64 bits of each piece's SHA-1: datasketch's sha1_hash64.

    Little-endian; the lower half is datasketch's sha1_hash32.
    """
    hash_P = np.empty(len(pieces.start), np.uint64)
    _sha1(pieces.utf8, pieces.start, pieces.stop, hash_P)
    for piece in np.flatnonzero(pieces.stop - pieces.start > ONE_BLOCK):  # rare, and few
        message = pieces.utf8[pieces.start[piece] : pieces.stop[piece]].tobytes()
        digest = hashlib.sha1(message, usedforsecurity=False).digest()
        hash_P[piece] = int.from_bytes(digest[:8], "little")
    return hash_P


@compiled()
def _sha1(utf8, start_P, stop_P, hash_P):
    """Hashes every piece of one block, LANES side by side; FIPS 180-4, section 6.1."""
    word_16L = np.empty((16, LANES), np.uint32)
    held_5L = np.empty((5, LANES), np.uint32)
    for first in range(0, len(start_P), LANES):
        lanes = min(LANES, len(start_P) - first)
        word_16L[:] = 0
        for lane in range(lanes):
            start = start_P[first + lane]
            size = min(stop_P[first + lane] - start, ONE_BLOCK)
            for i in range(size):
                word_16L[i >> 2, lane] |= np.uint32(utf8[start + i]) << np.uint32(24 - 8 * (i & 3))
            word_16L[size >> 2, lane] |= np.uint32(0x80) << np.uint32(24 - 8 * (size & 3))
            word_16L[15, lane] = 8 * size
        for i in range(5):
            held_5L[i] = START_5[i]
        for t in range(80):
            if t >= 16:
                later = word_16L[(t - 3) & 15], word_16L[(t - 8) & 15], word_16L[(t - 14) & 15]
                _extend(word_16L[t & 15], *later)
            # FIPS moves a to b, b to c ... after each round: here the names move instead.
            a, b, c = held_5L[(80 - t) % 5], held_5L[(81 - t) % 5], held_5L[(82 - t) % 5]
            _round(t, word_16L[t & 15], a, b, c, held_5L[(83 - t) % 5], held_5L[(84 - t) % 5])
        for lane in range(lanes):
            low = np.uint64(_swapped(np.uint32(held_5L[0, lane] + START_5[0])))
            high = np.uint64(_swapped(np.uint32(held_5L[1, lane] + START_5[1])))
            hash_P[first + lane] = low | high << np.uint64(32)


# Loops over arrays passed as arguments: only then does the compiler run lanes in parallel.
@compiled()
def _extend(w_L, w3_L, w8_L, w14_L):
    for i in range(LANES):
        x = np.uint32(w3_L[i] ^ w8_L[i] ^ w14_L[i] ^ w_L[i])
        w_L[i] = np.uint32(x << np.uint32(1)) | np.uint32(x >> np.uint32(31))


@compiled()
def _round(t, w_L, a_L, b_L, c_L, d_L, e_L):
    """Does one round of SHA-1 on five words."""
    for i in range(LANES):
        turned = np.uint32(a_L[i] << np.uint32(5)) | np.uint32(a_L[i] >> np.uint32(27))
        e_L[i] += np.uint32(turned) + w_L[i]
    if t < 20:
        for i in range(LANES):
            e_L[i] += ((b_L[i] & c_L[i]) | (~b_L[i] & d_L[i])) + np.uint32(0x5A827999)
    elif t < 40:
        for i in range(LANES):
            e_L[i] += (b_L[i] ^ c_L[i] ^ d_L[i]) + np.uint32(0x6ED9EBA1)
    elif t < 60:
        for i in range(LANES):
            both = (b_L[i] & c_L[i]) | (b_L[i] & d_L[i]) | (c_L[i] & d_L[i])
            e_L[i] += both + np.uint32(0x8F1BBCDC)
    else:
        for i in range(LANES):
            e_L[i] += (b_L[i] ^ c_L[i] ^ d_L[i]) + np.uint32(0xCA62C1D6)
    for i in range(LANES):
        b_L[i] = np.uint32(b_L[i] << np.uint32(30)) | np.uint32(b_L[i] >> np.uint32(2))


@compiled()
def _swapped(x):
    """Returns x with its four bytes reversed."""
    upper = np.uint32(x << np.uint32(24)) | ((x & np.uint32(0xFF00)) << np.uint32(8))
    return upper | ((x >> np.uint32(8)) & np.uint32(0xFF00)) | (x >> np.uint32(24))


@compiled()
def distinct(hash_P, end_N):
    """Returns (M,) the set of each text's hashes, ascending, and (N,) where each set ends."""
    item_M = np.empty_like(hash_P)
    stop_N = np.empty_like(end_N)
    start = count = 0
    for n in range(len(end_N)):
        ordered = np.sort(hash_P[start : end_N[n]])
        for i in range(len(ordered)):
            if i == 0 or ordered[i] != ordered[i - 1]:
                item_M[count] = ordered[i]
                count += 1
        start, stop_N[n] = end_N[n], count
    return item_M[:count], stop_N


def numbers(pieces: Pieces) -> NDArray[np.uint64]:
    """Returns (P,) a quick 64-bit hash of each piece, by which to find equal pieces.

    Error: none for pieces of up to 7 bytes; of others, equal with a chance of 2^-64 a pair.
    """
    return _numbers(pieces.utf8, pieces.start, pieces.stop)


@compiled()
def _numbers(utf8, start_P, stop_P):
    number_P = np.empty(len(start_P), np.uint64)
    for piece in range(len(start_P)):
        start, stop = start_P[piece], stop_P[piece]
        number, word = np.uint64(stop - start) << np.uint64(56), np.uint64(0)
        for i in range(start, stop):
            word = word << np.uint64(8) | np.uint64(utf8[i])
            if (i - start) & 7 == 7:
                number, word = _splitmix(number ^ word), np.uint64(0)
        number_P[piece] = _splitmix(number ^ word)
    return number_P


@compiled()
def _splitmix(x):
    """Applies splitmix64's finaliser: one to one, each bit changes many."""
    x = np.uint64((x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9))
    x = np.uint64((x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB))
    return np.uint64(x ^ (x >> np.uint64(31)))


def jaccard(
    number_P: NDArray[np.uint64],
    end_N: NDArray[np.int64],
    a_E: NDArray[np.int64],
    b_E: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Returns (E,) shared pieces of two texts over pieces of both, 0 to 1: exact but for rounding.

    Text n has the numbers before end_N[n]. Fastest if pairs of one b are adjacent.
    """
    most = int(np.diff(end_N, prepend=0).max(initial=0))
    return _jaccard(number_P, end_N, a_E, b_E, slots_for(most))


@compiled()
def _jaccard(number_P, end_N, a_E, b_E, slots):
    similarity_E = np.empty(len(a_E), np.float64)
    set_a, set_b = np.empty(slots, np.uint64), np.empty(slots, np.uint64)
    round_a, round_b = np.zeros(slots, np.int64), np.zeros(slots, np.int64)
    begun = size_b = 0
    for edge in range(len(a_E)):
        a, b = a_E[edge], b_E[edge]
        if edge == 0 or b != b_E[edge - 1]:
            begun, size_b = edge + 1, 0
            for p in range(end_N[b - 1] if b else 0, end_N[b]):
                size_b += entered(set_b, round_b, number_P[p], begun)
        size_a = shared = 0
        for p in range(end_N[a - 1] if a else 0, end_N[a]):
            if entered(set_a, round_a, number_P[p], edge + 1):
                size_a += 1
                slot = slot_of(set_b, round_b, number_P[p], begun)
                shared += round_b[slot] == begun
        both = size_a + size_b - shared
        similarity_E[edge] = shared / both if both else 0.0
    return similarity_E


def blocks(size_N: NDArray[np.int64], most: int) -> list[slice]:
    """Returns slices of neighbours whose sizes sum to about `most`, each of one item at least."""
    part_N = np.cumsum(size_N) // most
    bounds = [0, *(np.flatnonzero(np.diff(part_N)) + 1).tolist(), len(size_N)]
    return [slice(a, b) for a, b in pairwise(bounds) if a < b]


def slots_for(numbers: int) -> int:
    """Returns the number of slots for these numbers: a power of two, at most half full."""
    return 1 << (2 * numbers).bit_length()


@compiled()
def entered(held_T, round_T, number, present):
    """Adds a number to the set of round `present`; returns whether it was new.

    A slot belongs to the set if round_T has `present` there: a new round empties all slots.
    """
    slot = slot_of(held_T, round_T, number, present)
    is_new = round_T[slot] != present
    held_T[slot], round_T[slot] = number, present
    return is_new


@compiled()
def slot_of(held_T, round_T, number, present):
    """Returns the slot of a number, or the free slot for it if it is not in the set."""
    last = np.uint64(len(held_T) - 1)
    slot = number & last
    while round_T[slot] == present and held_T[slot] != number:
        slot = (slot + np.uint64(1)) & last
    return slot
