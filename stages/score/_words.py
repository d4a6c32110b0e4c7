"""Measures how much of a caption copies its source, repeats itself, or leaks the prompt.

A word is a run of letters, marks and digits in lower case, with hyphens and apostrophes inside. In
scripts without spaces each character is a word, except for repetition, because short runs of
characters recur in any text. Words are compared by a hash of 64 bits.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.stages.ops.compiled import compiled

# Shapes: N texts, T words of all texts in a row.

NO_SPACES = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
INSIDE = r"(?:['’-][\pL\pM\p{Nd}]+)*"  # noqa: RUF001
WORD = rf"[{NO_SPACES}]|[[\pL\pM\p{{Nd}}]--[{NO_SPACES}]]+{INSIDE}"
WHOLE = rf"[\pL\pM\p{{Nd}}]+{INSIDE}"
AGAIN = 4  # words: a run of this length that occurred before is a repetition
FEW = 3  # repeating words: fewer count as none, as in `ha ha ha`
LEAKED = 6  # words: shorter runs of a prompt occur in good captions
RUN = 8  # of one character, digits apart: a longer run is a repetition
ODD = np.uint64(0x9E3779B97F4A7C15)  # spreads bits
MOST = 2_000  # first words of a text that are compared


@dataclass(frozen=True)
class Words:
    """Hashes of the words of texts, one text after the other; text n ends before end[n]."""

    hash: NDArray[np.uint64]  # (T,)
    end: NDArray[np.int64]  # (N,)


def words_of(texts: pl.Series, word: str = WORD) -> Words:
    """Returns at most MOST words of each text; none if it is null."""
    bare = texts.fill_null("").str.normalize("NFKC").str.to_lowercase()
    words = bare.str.extract_all(word).list.head(MOST)
    end_N = words.list.len().cast(pl.Int64).cum_sum().to_numpy()
    return Words(words.explode(empty_as_null=False).hash(seed=0).to_numpy(), end_N)


def copy_ratio(text: Words, source: Words) -> NDArray[np.float32]:
    """Returns (N,) the longest common subsequence over the longer text, in words; NaN if empty."""
    return _common(text.hash, text.end, source.hash, source.end)


def repetition(texts: pl.Series) -> NDArray[np.float32]:
    """Returns (N,) the share of words that repeat, or of characters in runs; 0 without words.

    A word repeats in a run of AGAIN words that occurred before in the text, or in one or two words
    that follow themselves twice or more. Fewer than FEW repeating words count as none.
    """
    words = words_of(texts, WHOLE)
    size_N = texts.str.len_chars().to_numpy()
    runs = texts.str.extract_all(r"[^\s\p{Nd}]+").list.join(" ")
    return np.fmax(_again(words.hash, words.end), _in_runs(runs, size_N))


def leak(words: Words, prompt: Words, known: Words) -> NDArray[np.float32]:
    """Returns (N,) the share of words in runs of LEAKED that are in a prompt and not in `known`."""
    prompt_G, _, _ = _grams(prompt)
    gram_G, first_G, text_G = _grams(words)
    known_H, _, text_H = _grams(known)
    is_known_G = np.isin(gram_G ^ text_G * ODD, known_H ^ text_H * ODD)  # known for its own text
    is_leaked_T = np.zeros(len(words.hash), bool)
    for step in range(LEAKED):
        is_leaked_T[first_G[np.isin(gram_G, prompt_G) & ~is_known_G] + step] = True
    return _shares(is_leaked_T, words.end)


def _grams(words: Words) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.uint64]]:
    """Returns hash, first word and text of every run of LEAKED words inside one text."""
    text_T = np.repeat(np.arange(len(words.end)), np.diff(words.end, prepend=0))
    first_G = np.arange(max(len(text_T) - LEAKED + 1, 0))
    first_G = first_G[text_T[first_G] == text_T[first_G + LEAKED - 1]]
    gram_G = np.zeros(len(first_G), np.uint64)
    for step in range(LEAKED):
        gram_G = (gram_G ^ words.hash[first_G + step]) * ODD
        gram_G ^= gram_G >> np.uint64(29)
    return gram_G, first_G, text_T[first_G].astype(np.uint64)


def _shares(is_marked_T: NDArray[np.bool_], end_N: NDArray[np.int64]) -> NDArray[np.float32]:
    """Returns (N,) the marked share of each text's words; NaN without words."""
    total_T = np.append(0, np.cumsum(is_marked_T))
    start_N = np.append(0, end_N[:-1]) if len(end_N) else end_N
    with np.errstate(invalid="ignore"):  # 0 of 0 is our NaN
        share_N = (total_T[end_N] - total_T[start_N]) / (end_N - start_N)
    return share_N.astype(np.float32)


def _in_runs(texts: pl.Series, size_N: NDArray[np.integer]) -> NDArray[np.float32]:
    """Returns (N,) the share of characters in runs of one character, at least RUN long."""
    utf8 = texts.to_arrow().cast(pa.large_string())
    _, offsets, data = utf8.buffers()
    byte = np.frombuffer(data or b"", np.uint8)
    offset = np.frombuffer(offsets, np.int64)[utf8.offset : utf8.offset + len(utf8) + 1]
    return _runs(byte, offset, RUN) / np.maximum(size_N, 1).astype(np.float32)


@compiled()
def _common(hash_T, end_N, other_T, other_end_N):
    out = np.full(len(end_N), np.nan, np.float32)
    start, other_start = 0, 0
    for n in range(len(end_N)):
        a, b = hash_T[start : end_N[n]], other_T[other_start : other_end_N[n]]
        start, other_start = end_N[n], other_end_N[n]
        if len(a) == 0 or len(b) == 0:
            continue
        best = np.zeros(len(b) + 1, np.int32)
        for i in range(len(a)):
            corner = np.int32(0)  # best[j] of the row before
            for j in range(len(b)):
                above = best[j + 1]
                best[j + 1] = corner + 1 if a[i] == b[j] else max(above, best[j])
                corner = above
        out[n] = best[len(b)] / max(len(a), len(b))
    return out


@compiled()
def _again(hash_T, end_N):
    out = np.full(len(end_N), np.nan, np.float32)
    start = 0
    for n in range(len(end_N)):
        w = hash_T[start : end_N[n]]
        start = end_N[n]
        if len(w) == 0:
            continue
        repeats = np.zeros(len(w), np.bool_)
        seen = set()
        for i in range(len(w) - AGAIN + 1):
            gram = np.uint64(0)
            for step in range(AGAIN):
                gram = (gram ^ w[i + step]) * ODD
                gram ^= gram >> np.uint64(29)
            if gram in seen:
                repeats[i : i + AGAIN] = True
            seen.add(gram)
        for period in (1, 2):
            length = 0  # of the run of words that equal the one `period` before
            for i in range(period, len(w)):
                length = length + 1 if w[i] == w[i - period] else 0
                if length >= 2 * period:
                    repeats[i - length + 1 : i + 1] = True
        count = repeats.sum()
        out[n] = count / len(w) if count >= FEW else 0
    return out


@compiled()
def _runs(byte, offset, least):
    """Returns (N,) characters in runs of one character; a character of many bytes counts once."""
    out = np.zeros(len(offset) - 1, np.float32)
    for n in range(len(offset) - 1):
        place, stop = offset[n], offset[n + 1]
        run, last_start, last_size = 0, place, 0
        while place < stop:
            first = byte[place]
            size = 1 if first < 0x80 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
            same = size == last_size
            for k in range(size):
                same = same and byte[place + k] == byte[last_start + k]
            if same:
                run += 1
            else:
                out[n] += run if run >= least else 0
                run = 1
            last_start, last_size = place, size
            place += size
        out[n] += run if run >= least else 0
    return out
