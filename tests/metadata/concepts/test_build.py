"""The four sources of a list, and how they become one."""

import bz2
import gzip

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.concepts.build import NUMERALS, Thresholds, build, ngrams, read_texts, titles
from clipmill.metadata.concepts.load import of_entries

TEXTS = ["red dog"] * 4 + ["red cat"] * 3 + ["a red fox"] * 2 + ["polar bear"] * 2


def entries(made):
    return made.entries.to_pylist()[len(NUMERALS) :]


def test_parts_follow_the_numerals_in_their_order_each_entry_once():
    made = build([of_entries(["dog", "7", "cat"], "wordnet"), of_entries(["cat", "cow"], "title")])
    assert made.entries.to_pylist()[:100] == [str(number) for number in range(100)]
    assert entries(made) == ["dog", "cat", "cow"]
    assert made.table["source"].to_pylist()[99:] == ["numeral", "wordnet", "wordnet", "title"]


def test_punctuation_blanks_and_what_is_too_long_stay_out():
    made = build(
        [of_entries(["!", "...", " ", "“”", "x" * 257, "x" * 256, " dog ", "a.b", "é", "中"])]
    )
    assert entries(made) == ["x" * 256, "dog", "a.b", "é", "中"]


def test_a_list_is_cut_at_its_largest_size_from_the_end():
    made = build([of_entries(["a", "b", "c"])], max_entries=102)
    assert entries(made) == ["a", "b"]


def test_a_language_is_given_to_entries_without_one():
    made = build([of_entries(["dog"], language="en"), of_entries(["Hund"])], language="de")
    assert made.table["language"].to_pylist()[98:] == ["de", "de", "en", "de"]


def test_a_word_may_come_again_in_another_language():
    made = build([of_entries(["Gift"], language="en"), of_entries(["Gift"])], language="de")
    assert entries(made) == ["Gift", "Gift"]


def test_unigrams_come_by_count_and_bigrams_by_information():
    least = Thresholds(min_unigram_count=2, min_bigram_count=2, min_pmi=0.1)
    unigrams, bigrams = ngrams([pl.Series(TEXTS)], least)
    assert unigrams["entry"].to_pylist() == ["red", "dog", "cat", "a", "bear", "fox", "polar"]
    assert unigrams["count"].to_pylist() == [9, 4, 3, 2, 2, 2, 2]
    assert bigrams["entry"].to_pylist()[0] == "polar bear"
    assert set(bigrams["entry"].to_pylist()) == {
        "polar bear",
        "red dog",
        "red cat",
        "red fox",
        "a red",
    }


@pytest.mark.parametrize(
    ("least", "left"),
    [
        (Thresholds(min_unigram_count=4, min_pmi=99), {"red", "dog"}),
        (Thresholds(min_unigram_count=100, min_bigram_count=3, min_pmi=0), {"red dog", "red cat"}),
        (Thresholds(min_unigram_count=100, min_pmi=3), {"polar bear"}),
        (Thresholds(), set()),
    ],
)
def test_thresholds_are_least_values(least, left):
    found = {e for part in ngrams([pl.Series(TEXTS)], least) for e in part["entry"].to_pylist()}
    assert found == left


def test_defaults_are_the_published_thresholds():
    assert Thresholds() == Thresholds(
        min_unigram_count=100, min_bigram_count=1, min_pmi=30.0, min_views=70, max_entries=500_000
    )


def test_titles_add_up_over_hours_of_fifty_views_and_more(tmp_path):
    first = tmp_path / "pageviews-1"
    first.write_text(
        "en Big_Ben 50 0\nen Small 49 0\nde Berlin 900 0\nen Talk:Ben 80 0\nen.m X 99 0\n"
        "en \u3000Tor\u00a0Bay 80 0\nen Tor\u00a0Bay 80 0\n"
        "en Broken 99999999999999999999 0\nen Arabic \u0663\u0664\u0665 0\n",  # no counts
        encoding="utf-8",
    )
    with gzip.open(tmp_path / "pageviews-2.gz", "wt") as file:
        file.write("en Big_Ben 60 0\nen Small 49 0\nen Cat 69 0\nen Dog 70 0\n")
    made = titles([first, tmp_path / "pageviews-2.gz"], Thresholds())
    assert dict(zip(made["entry"].to_pylist(), made["count"].to_pylist(), strict=True)) == {
        "Tor\u00a0Bay": 160,
        "Big Ben": 110,
        "Dog": 70,
    }
    assert titles([first], Thresholds(), "de")["entry"].to_pylist() == ["Berlin"]


def test_a_corpus_is_parquet_or_lines(tmp_path):
    folder = tmp_path / "metadata"
    folder.mkdir()
    pq.write_table(pa.table({"text": ["a", None], "url": ["u", "v"]}), folder / "0.parquet")
    (tmp_path / "lines.GZ").write_bytes(gzip.compress(b"b c\nd\n"))
    (tmp_path / "lines.bz2").write_bytes(bz2.compress(b"e\n"))
    paths = [folder, tmp_path / "lines.GZ", tmp_path / "lines.bz2"]
    found = [text for part in read_texts(paths) for text in part]
    assert found == ["a", None, "b c\n", "d\n", "e\n"]


def test_parquet_without_the_texts_is_refused_by_name(tmp_path):
    pq.write_table(pa.table({"caption": ["a"]}), tmp_path / "0.parquet")
    with pytest.raises(ValueError, match=r"0\.parquet has no column 'text'"):
        list(read_texts([tmp_path / "0.parquet"]))


def test_the_order_of_a_corpus_does_not_show():
    least = Thresholds(min_unigram_count=1, min_pmi=0)
    there = [part.to_pylist() for part in ngrams([pl.Series(TEXTS)], least)]
    back = [part.to_pylist() for part in ngrams([pl.Series(TEXTS[::-1])], least)]
    assert there == back


@pytest.mark.parametrize("name", ["a.parq", "a.PARQUET"])
def test_a_corpus_is_parquet_by_any_of_its_suffixes_and_its_texts_may_be_categories(name, tmp_path):
    texts = pa.array(["a red fox"]).dictionary_encode()
    pq.write_table(pa.table({"text": texts, "n": [1]}), tmp_path / name)
    assert [series.to_list() for series in read_texts([tmp_path / name])] == [["a red fox"]]
    with pytest.raises(ValueError, match="int64, not text"):
        list(read_texts([tmp_path / name], "n"))


def test_a_source_that_breaks_off_is_named(tmp_path):
    (tmp_path / "views.gz").write_bytes(gzip.compress(b"en Big_Ben 90 0\n" * 99)[:-9])
    (tmp_path / "views.bz2").write_bytes(b"<html>")
    for name in ("views.gz", "views.bz2"):
        with pytest.raises(ValueError, match=f"{name} cannot be unpacked"):
            titles([tmp_path / name], Thresholds())
