"""How often words and pairs of words stand in a corpus, and how much more often than by chance.

Words are what the published matcher takes for words: between spaces, with a space put around seven
punctuation marks. A word of punctuation alone counts for nothing, and no pair reaches across it.
"""

from collections.abc import Iterable

import polars as pl

CAPTIONS = 200_000  # counted at a time


def count_ngrams(texts: Iterable[pl.Series]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(word, count) and (first, second, count), most frequent first.

    Memory is the distinct pairs: some 60 bytes each.
    """
    words = pl.DataFrame(schema={"first": pl.String, "count": pl.Int64})
    pairs = pl.DataFrame(schema={"first": pl.String, "second": pl.String, "count": pl.Int64})
    for series in texts:
        for start in range(0, len(series), CAPTIONS):
            one, two = _counted(series.slice(start, CAPTIONS))
            words = _sum(pl.concat([words, one]), ["first"])
            pairs = _sum(pl.concat([pairs, two]), ["first", "second"])
    return words.rename({"first": "word"}), pairs


def with_pmi(words: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """Pairs with `pmi`, in bits: log2 of how much more often they meet than by chance.

    Its ceiling is log2 of the corpus's words, for two words that stand once, and together.
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
    one = words.group_by("first").agg(count=pl.len().cast(pl.Int64))
    two = (
        words.filter(pl.col("pairs")).group_by("first", "second").agg(count=pl.len().cast(pl.Int64))
    )
    return one, two


def _sum(counts: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """Most frequent first, then by the alphabet: the order of the corpus does not show."""
    summed = counts.group_by(keys).agg(pl.col("count").sum())
    return summed.sort(["count", *keys], descending=[True] + [False] * len(keys))
