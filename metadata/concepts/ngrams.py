"""Counts words and word pairs of a corpus, and their pointwise mutual information.

Words are split as in the published matcher: at spaces, after a space is put around seven
punctuation marks. Words of punctuation alone are not counted, and no pair reaches across one.
"""

from collections.abc import Iterable

import polars as pl

CAPTIONS = 200_000  # counted at a time


def count_ngrams(texts: Iterable[pl.Series]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Returns (word, count) and (first, second, count), most frequent first.

    Memory: about 60 bytes for each distinct pair.
    """
    words = pl.DataFrame(schema={"first": pl.String, "count": pl.Int64})
    pairs = pl.DataFrame(schema={"first": pl.String, "second": pl.String, "count": pl.Int64})
    for series in texts:
        for start in range(0, len(series), CAPTIONS):
            more_words, more_pairs = _counted(series.slice(start, CAPTIONS))
            words = _sum(pl.concat([words, more_words]), ["first"])
            pairs = _sum(pl.concat([pairs, more_pairs]), ["first", "second"])
    return words.rename({"first": "word"}), pairs


def with_pmi(words: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """Adds `pmi` to pairs, in bits: log2 of how much more often they meet than by chance.

    At most log2 of the corpus's words: for two words that occur once, together.
    """
    total = words["count"].sum()
    first = words.select(first="word", n_first="count")
    second = words.select(second="word", n_second="count")
    met = pairs.join(first, on="first").join(second, on="second")
    ratio = (pl.col("count") * float(total)) / (pl.col("n_first") * pl.col("n_second").cast(float))
    return met.select("first", "second", "count", pmi=ratio.log(2))


def _counted(texts: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame]:
    words = (
        pl.DataFrame({"text": texts.drop_nulls()})
        .with_row_index("row")
        .select(
            "row",
            first=pl.col("text")
            .str.replace_all(r"[\t\n\r]", " ")
            .str.replace_all(r"([,.;:?!`])", " $1 ")
            .str.split(" "),
        )
        .explode("first")
        .filter(pl.col("first") != "")
        .with_columns(is_word=pl.col("first").str.contains(r"[^\p{P}\p{S}]"))
        .with_columns(
            second=pl.col("first").shift(-1),
            pairs=pl.col("is_word")
            & pl.col("is_word").shift(-1)
            & (pl.col("row") == pl.col("row").shift(-1)),
        )
        .filter("is_word")
    )
    unigrams = words.group_by("first").agg(count=pl.len().cast(pl.Int64))
    bigrams = (
        words.filter(pl.col("pairs")).group_by("first", "second").agg(count=pl.len().cast(pl.Int64))
    )
    return unigrams, bigrams


def _sum(counts: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """Sums counts; most frequent first, ties by the alphabet, whatever the corpus's order."""
    summed = counts.group_by(keys).agg(pl.col("count").sum())
    return summed.sort(["count", *keys], descending=[True] + [False] * len(keys))
