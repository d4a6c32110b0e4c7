"""Captions as bags of hashed words, without the pieces of words that nano reads (clip/texts.py)."""

import zlib
from typing import NamedTuple, TypeAlias

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

# Shapes: N texts, W words of all of them.

Texts: TypeAlias = pa.ChunkedArray | list[str]
WORD = r"\w+"


class WordBags(NamedTuple):
    """The bucket of every word, text after text."""

    bucket_W: NDArray[np.int64]
    count_N: NDArray[np.int64]  # of each text's words; 0 of a null

    def starts(self) -> NDArray[np.int64]:
        """(N,) the place of each text's first word."""
        return np.cumsum(self.count_N) - self.count_N


def word_bags(texts: Texts, buckets: int) -> WordBags:
    """Words in lower case, hashed by CRC-32; a word that a text repeats counts again."""
    words = pl.Series(texts, dtype=pl.String).str.to_lowercase().str.extract_all(WORD)
    count_N = words.list.len().fill_null(0).to_numpy().astype(np.int64)
    spoken = words.explode().drop_nulls().to_arrow().dictionary_encode()  # they repeat
    hash_U = [zlib.crc32(word.encode()) % buckets for word in spoken.dictionary.to_pylist()]
    return WordBags(np.array(hash_U, np.int64)[spoken.indices.to_numpy()], count_N)
