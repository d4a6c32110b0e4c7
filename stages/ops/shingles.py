"""The overlapping pieces of texts, and sets of them: hashed, compared exactly."""

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

# Shapes: N texts; U units (characters or words), P pieces, M distinct pieces, of all texts in a
# row; L lanes; E pairs of texts.

Unit = Literal["character", "word"]

LANES = 256  # messages hashed side by side; their words lie in a processor's nearest cache
ONE_BLOCK = 55  # bytes: a longer message takes SHA-1 more than one block
START_5 = np.array([0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0], np.uint32)


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """Where each text's pieces lie in one run of UTF-8; text n has those before end[n]."""

    utf8: NDArray[np.uint8]
    start: NDArray[np.int64]  # (P,)
    stop: NDArray[np.int64]  # (P,)
    end: NDArray[np.int64]  # (N,)


@dataclass(frozen=True, kw_only=True)
class Sets:
    """Sets of hashes, each in ascending order; set n ends before end[n]."""

    item: NDArray[np.uint64]  # (M,)
    end: NDArray[np.int64]  # (N,)


def plain(text: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Lower case, each run of white space one space, none at the ends; null where nothing is left.

    Punctuation and accents stay: another accent is another word.
    """
    import polars as pl

    # Python's white space, whose last four a regular expression's \\s does not know.
    space = r"[\s\x1C-\x1F]+"
    column = pl.DataFrame(pa.table({"text": text})).to_series().cast(pl.String)
    bare = column.str.to_lowercase().str.replace_all(space, " ").str.strip_chars(" ")
    return bare.replace("", None).to_arrow().cast(pa.large_string())


def pieces(text: pa.Array, unit: Unit, size: int) -> Pieces:
    """Every run of `size` characters or words of each plain text; a shorter text is one piece."""
    _, offsets, data = text.buffers()
    if data is None:
        data = pa.py_buffer(b"")
    bound = np.frombuffer(offsets, np.int64)[text.offset : text.offset + len(text) + 1]
    utf8 = np.frombuffer(data, np.uint8)
    first, last = (bound[0], bound[-1]) if len(text) else (0, 0)
    byte = utf8[first:last]
    if unit == "character":
        is_start = (byte & 0xC0) != 0x80  # else a later byte of the same character
    else:
        is_start = np.append(True, byte[:-1] == ord(" "))[: len(byte)]
        is_start[(bound[:-1] - first)[bound[:-1] < last]] = True
    start_U = np.flatnonzero(is_start) + first
    end_N = np.searchsorted(start_U, bound[1:])
    units_N = np.diff(end_N, prepend=0)
    stop_U = np.append(start_U[1:], last) - (unit == "word")  # the space goes with no word
    stop_U[end_N[units_N > 0] - 1] = bound[1:][units_N > 0]
    count_N = np.where(units_N > 0, np.maximum(units_N - size + 1, 1), 0)
    begin_P = np.repeat(end_N - units_N - np.cumsum(count_N) + count_N, count_N)
    begin_P += np.arange(len(begin_P))
    wide_P = np.repeat(np.minimum(units_N, size), count_N)
    return Pieces(
        utf8=utf8,
        start=start_U[begin_P],
        stop=stop_U[begin_P + wide_P - 1],
        end=np.cumsum(count_N),
    )


def digests(text: pa.Array | pa.ChunkedArray) -> NDArray[np.uint64]:
    """(N,) 64 bits of each text, by which equal ones are known: wrong for 2^-64 of pairs."""
    blake = hashlib.blake2b  # takes one text at a time
    digest = b"".join(blake(one.encode(), digest_size=8).digest() for one in text.to_pylist())
    return np.frombuffer(digest, "<u8").astype(np.uint64)


def hashes(found: Pieces) -> NDArray[np.uint64]:
    """(P,) the first 64 bits of each piece's SHA-1, little-endian: datasketch's sha1_hash64.

    Its sha1_hash32 is their lower half.
    """
    hash_P = np.empty(len(found.start), np.uint64)
    _sha1(found.utf8, found.start, found.stop, hash_P)
    for piece in np.flatnonzero(found.stop - found.start > ONE_BLOCK):  # rare, and few
        message = found.utf8[found.start[piece] : found.stop[piece]].tobytes()
        digest = hashlib.sha1(message, usedforsecurity=False).digest()
        hash_P[piece] = int.from_bytes(digest[:8], "little")
    return hash_P


@njit(cache=True, nogil=True)
def _sha1(utf8, start_P, stop_P, hash_P):
    """The hash of every piece of one block, LANES side by side; FIPS 180-4, section 6.1."""
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


# Loops over whole arrays, handed over as such: only then does the compiler run lanes in parallel.
@njit(cache=True, nogil=True)
def _extend(w_L, w3_L, w8_L, w14_L):
    for i in range(LANES):
        x = np.uint32(w3_L[i] ^ w8_L[i] ^ w14_L[i] ^ w_L[i])
        w_L[i] = np.uint32(x << np.uint32(1)) | np.uint32(x >> np.uint32(31))


@njit(cache=True, nogil=True)
def _round(t, w_L, a_L, b_L, c_L, d_L, e_L):
    """e becomes the round's sum, and b turns by 30 bits."""
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


@njit(cache=True, nogil=True)
def _swapped(x):
    """The four bytes of x in the other order."""
    upper = np.uint32(x << np.uint32(24)) | ((x & np.uint32(0xFF00)) << np.uint32(8))
    return upper | ((x >> np.uint32(8)) & np.uint32(0xFF00)) | (x >> np.uint32(24))


def distinct(hash_P: NDArray[np.uint64], end_N: NDArray[np.int64]) -> Sets:
    """The set of each text's pieces."""
    item_M, stop_N = _distinct(hash_P, end_N)
    return Sets(item=item_M, end=stop_N)


@njit(cache=True, nogil=True)
def _distinct(hash_P, end_N):
    item_M = np.empty_like(hash_P)
    stop_N = np.empty_like(end_N)
    start = made = 0
    for n in range(len(end_N)):
        ordered = np.sort(hash_P[start : end_N[n]])
        for i in range(len(ordered)):
            if i == 0 or ordered[i] != ordered[i - 1]:
                item_M[made] = ordered[i]
                made += 1
        start, stop_N[n] = end_N[n], made
    return item_M[:made], stop_N


def jaccard(of: Sets, a_E: NDArray[np.int64], b_E: NDArray[np.int64]) -> NDArray[np.float64]:
    """(E,) shared items of two sets over items of both, 0 to 1; one rounding, no estimate."""
    return _jaccard(of.item, of.end, a_E, b_E)


@njit(cache=True, nogil=True)
def _jaccard(item_M, end_N, a_E, b_E):
    similarity_E = np.empty(len(a_E), np.float64)
    for edge in range(len(a_E)):
        a, b = a_E[edge], b_E[edge]
        i, j = end_N[a - 1] if a else 0, end_N[b - 1] if b else 0
        i_stop, j_stop = end_N[a], end_N[b]
        size = i_stop - i + j_stop - j
        shared = 0
        while i < i_stop and j < j_stop:
            left, right = item_M[i], item_M[j]
            shared += left == right
            i += left <= right
            j += right <= left
        similarity_E[edge] = shared / (size - shared) if size else 0.0
    return similarity_E
