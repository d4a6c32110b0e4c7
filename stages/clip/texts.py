"""Captions as bags of hashed words and pieces of words: no vocabulary to learn or to ship."""

import re
import zlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain

import numpy as np
from numpy.typing import NDArray

# Shapes: N texts, T tokens of all of them.

GRAM = 4  # characters
WORD = re.compile(r"\w+")


def token_bags(
    texts: Sequence[str], buckets: int, most: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """(T,) bucket of every token, and (N + 1,) the first token of each text; at most `most` a text.

    Words come before pieces, so that a long caption loses its pieces first. A text without a
    word has an empty bag.
    """
    bags = [_tokens(text)[:most] for text in texts]  # lengths differ
    ends_N = np.cumsum([0, *map(len, bags)], dtype=np.int64)
    hash_T = np.fromiter(chain.from_iterable(bags), np.uint32, count=int(ends_N[-1]))
    return (hash_T % np.uint32(buckets)).astype(np.int32), ends_N


def _tokens(text: str) -> list[int]:
    words = WORD.findall(text.casefold())
    hashed = [_hashes(word) for word in words]
    return [word for word, *_ in hashed] + [gram for _, *grams in hashed for gram in grams]


@lru_cache(1 << 16)  # captions share most of their words
def _hashes(word: str) -> tuple[int, ...]:
    """The word's hash, then those of its 4-grams, ends marked: `<star>` has <sta, star, tar>."""
    marked = f"<{word}>"
    grams = (marked[i : i + GRAM] for i in range(len(marked) - GRAM + 1))
    return tuple(zlib.crc32(token.encode("utf-8", "replace")) for token in (f" {word}", *grams))
