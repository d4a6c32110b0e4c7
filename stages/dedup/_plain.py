"""Normalizes texts for comparison: lower case, single spaces."""

import polars as pl
import pyarrow as pa

# Python's white space; a regular expression's \s lacks the last four.
SPACE = r"[\s\x1C-\x1F]+"


def plain(text: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Returns texts in lower case, single-spaced, without spaces at the ends; null if then empty.

    Punctuation and accents stay: another accent is another word.
    """
    return _plain(pl.DataFrame(pa.table({"text": text})).to_series().cast(pl.String))


def caption_keys(texts: pa.ChunkedArray) -> pa.Array:
    """Returns captions as `plain` does, in NFKC too: the keys by which equal captions are found."""
    column = pl.DataFrame(pa.table({"text": texts})).to_series().cast(pl.String)
    return _plain(column.str.normalize("NFKC"))


def _plain(column: pl.Series) -> pa.Array:
    bare = column.str.to_lowercase().str.replace_all(SPACE, " ").str.strip_chars(" ")
    return bare.replace("", None).to_arrow().cast(pa.large_string())
