"""Finds which of many patterns each of many texts contains: exactly, in compiled code.

From every possible start of a pattern, a hash runs along the text. At the end of each word (or of
each character, for a pattern that needs no space around it) it is looked up among the prefixes of
patterns; the search ends if it is not there. A whole pattern is compared byte by byte, so the
result does not depend on hashes.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.stages.annotate._spacing import SPACE, Texts, utf8_of
from clipmill.stages.ops.compiled import compiled

# Shapes: N texts, E patterns, S slots of a table, M matches.

BASIS, PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)  # of FNV-1a
SPREAD = np.uint64(0x9E3779B97F4A7C15)
NONE = -1
FEW = 32  # up to this many matches are sorted by insertion
Table = tuple[NDArray[np.uint64], NDArray[np.int32], NDArray[np.bool_]]


class Finder:
    """A set of patterns to find; empty ones never match, and of equal ones the first does."""

    def __init__(self, patterns: pa.StringArray) -> None:
        self.utf8, offset = utf8_of(patterns)
        self.start_E, self.stop_E = offset[:-1].astype(np.int64), offset[1:].astype(np.int64)
        length_E = self.stop_E - self.start_E
        closed_E = length_E > 2
        closed_E[closed_E] &= self.utf8[self.start_E[closed_E]] == SPACE
        closed_E[closed_E] &= self.utf8[self.stop_E[closed_E] - 1] == SPACE
        self.start_E += closed_E  # a closed pattern is whole words; its spaces are removed
        self.stop_E -= closed_E
        open_E = ~closed_E & (length_E > 0)
        self.words = self._table(np.flatnonzero(closed_E), by_word=True)
        self.characters = self._table(np.flatnonzero(open_E), by_word=False)
        self.has_open = bool(open_E.any())

    def _table(self, pattern: NDArray[np.int64], by_word: bool) -> Table:
        """Builds a hash table of prefixes, by slot: hash (0 if free), pattern or NONE, has_longer.

        has_longer: a longer pattern begins so. Raises ValueError at a collision: odds 10^-8.
        """
        where = (self.utf8, self.start_E, self.stop_E, pattern, by_word)
        slots = 1 << max(4, (2 * int(_beginnings(*where))).bit_length())
        table = (
            np.zeros(slots, np.uint64),
            np.full(slots, NONE, np.int32),
            np.zeros(slots, np.bool_),
        )
        if not _fill(*where, *table):
            raise ValueError("two patterns have the same hash: change BASIS")
        return table

    @property
    def size_bytes(self) -> int:
        """Size of the tables in bytes."""
        arrays = (self.utf8, self.start_E, self.stop_E, *self.words, *self.characters)
        return sum(array.nbytes for array in arrays)

    def find(self, texts: Texts) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Returns (N,) the number of patterns in each text, and (M,) these, ascending, distinct."""
        room = 16 * len(texts.ends)
        while True:
            count_N, pattern_M = _found(
                *(texts.utf8, texts.ends, self.utf8, self.start_E, self.stop_E),
                *(*self.words, *self.characters, self.has_open, room),
            )
            matches = int(count_N.sum())
            if matches <= room:
                return count_N, pattern_M[:matches]
            room = matches


@compiled()
def _slot(key_S, key):
    """Returns a hash's slot in the table, or the free slot for it."""
    mask = np.uint64(len(key_S) - 1)
    slot = ((key * SPREAD) >> np.uint64(32)) & mask
    while key_S[slot] != 0 and key_S[slot] != key:
        slot = (slot + np.uint64(1)) & mask
    return slot


@compiled()
def _hashed(value, byte):
    value = (value ^ np.uint64(byte)) * PRIME
    return value if value else np.uint64(1)  # 0 is a free slot


@compiled()
def _ends(utf8, place, by_word):
    """Returns whether a prefix may end before this byte."""
    return utf8[place] == SPACE if by_word else (utf8[place] & 0xC0) != 0x80


@compiled()
def _equal(text, start, stop, utf8, begin, end):
    if stop - start != end - begin:
        return False
    for step in range(stop - start):  # noqa: SIM110  # a loop compiles best
        if text[start + step] != utf8[begin + step]:
            return False
    return True


@compiled()
def _beginnings(utf8, start_E, stop_E, pattern, by_word):
    """Counts the prefixes of all patterns, shared ones repeatedly."""
    count = len(pattern)
    for e in pattern:
        for place in range(start_E[e], stop_E[e]):
            count += _ends(utf8, place, by_word)
    return count


@compiled()
def _fill(utf8, start_E, stop_E, pattern, by_word, key_S, pattern_S, more_S):
    """Fills the table with patterns; returns False if two different ones have one hash."""
    for e in pattern:
        value = BASIS
        for place in range(start_E[e], stop_E[e]):
            if _ends(utf8, place, by_word):
                slot = _slot(key_S, value)
                key_S[slot], more_S[slot] = value, True
            value = _hashed(value, utf8[place])
        slot = _slot(key_S, value)
        key_S[slot] = value
        other = pattern_S[slot]
        if other == NONE:
            pattern_S[slot] = e
        elif not _equal(utf8, start_E[e], stop_E[e], utf8, start_E[other], stop_E[other]):
            return False
    return True


@compiled()
def _found(
    text, end_N, utf8, start_E, stop_E, word_S, word_pattern_S, word_more_S,
    character_S, character_pattern_S, character_more_S, has_open, room,
):  # fmt: skip
    """Returns counts and patterns for `Finder.find`; patterns past `room` are counted only."""
    count_N = np.zeros(len(end_N), np.int64)
    pattern_M = np.empty(room, np.int32)
    seen_E = np.full(len(start_E), NONE, np.int64)  # the last text that had the pattern
    total, start = 0, 0
    for n in range(len(end_N)):
        end, first = end_N[n], total
        for begin in range(start, end):
            if text[begin] == SPACE:  # whole words begin after it
                value, place = BASIS, begin + 1
                while place < end:
                    if text[place] == SPACE:
                        slot = _slot(word_S, value)
                        if word_S[slot] == 0:
                            break
                        e = word_pattern_S[slot]
                        is_new = e != NONE and seen_E[e] != n
                        if is_new and _equal(text, begin + 1, place, utf8, start_E[e], stop_E[e]):
                            seen_E[e] = n
                            if total < room:
                                pattern_M[total] = e
                            total += 1
                        if not word_more_S[slot]:
                            break
                    value = _hashed(value, text[place])
                    place += 1
            if has_open and (text[begin] & 0xC0) != 0x80:  # a character begins here
                value, place = _hashed(BASIS, text[begin]), begin + 1
                while place <= end:
                    if (text[place] & 0xC0) != 0x80:  # at END, too
                        slot = _slot(character_S, value)
                        if character_S[slot] == 0:
                            break
                        e = character_pattern_S[slot]
                        is_new = e != NONE and seen_E[e] != n
                        if is_new and _equal(text, begin, place, utf8, start_E[e], stop_E[e]):
                            seen_E[e] = n
                            if total < room:
                                pattern_M[total] = e
                            total += 1
                        if not character_more_S[slot]:
                            break
                    value = _hashed(value, text[place])
                    place += 1
        count_N[n] = total - first
        _sort(pattern_M[first : min(total, room)])
        start = end + 1
    return count_N, pattern_M


@compiled()
def _sort(values):
    """Sorts in place; fast for few items."""
    if len(values) > FEW:
        values.sort()
        return
    for place in range(1, len(values)):
        value, before = values[place], place - 1
        while before >= 0 and values[before] > value:
            values[before + 1] = values[before]
            before -= 1
        values[before + 1] = value
