"""Counts of words and pairs of neighbours, and their mutual information."""

import math

import polars as pl
import pytest

from clipmill.metadata.concepts import build
from clipmill.metadata.concepts.build import count_ngrams, with_pmi


def counted(*texts):
    words, pairs = count_ngrams([pl.Series(list(texts), dtype=pl.String)])
    return dict(words.rows()), {f"{a} {b}": count for a, b, count in pairs.rows()}


def test_words_and_pairs_of_neighbours_are_counted():
    words, pairs = counted("the dog the dog", "The dog")
    assert words == {"dog": 3, "the": 2, "The": 1}
    assert pairs == {"the dog": 2, "dog the": 1, "The dog": 1}


def test_no_pair_reaches_across_punctuation_or_a_caption():
    words, pairs = counted("red dog, blue cat", "sun - moon", "sea")
    assert set(pairs) == {"red dog", "blue cat"}
    assert "," not in words
    assert "-" not in words


def test_words_are_the_published_matchers():
    words, _ = counted("dog-friendly\t(cat) don't 3.5", "x\ny")
    assert set(words) == {"dog-friendly", "(cat)", "don't", "3", "5", "x", "y"}


def test_nulls_and_empty_texts_count_for_nothing():
    assert counted(None, "", "  ", "!!!") == ({}, {})
    assert count_ngrams([])[0].rows() == []


def test_pieces_and_their_order_change_no_count(monkeypatch):
    texts = [f"a b{i % 3} c{i % 5}, d" for i in range(100)]
    whole = [frame.rows() for frame in count_ngrams([pl.Series(texts)])]
    monkeypatch.setattr(build, "CAPTIONS", 7)
    pieces = [pl.Series(texts[50:]), pl.Series(texts[:50])]
    assert [frame.rows() for frame in count_ngrams(pieces)] == whole


def test_mutual_information_of_known_counts():
    words = pl.DataFrame({"word": ["a", "b", "c"], "count": [2, 4, 10]})
    pairs = pl.DataFrame({"first": ["a", "b"], "second": ["b", "c"], "count": [2, 1]})
    found = {(a, b): pmi for a, b, _, pmi in with_pmi(words, pairs).rows()}
    assert found["a", "b"] == pytest.approx(math.log2(2 * 16 / (2 * 4)))
    assert found["b", "c"] == pytest.approx(math.log2(1 * 16 / (4 * 10)))


def test_mutual_information_of_counts_past_32_bits():
    many = 5_000_000_000
    words = pl.DataFrame({"word": ["a"], "count": [many]})
    pairs = pl.DataFrame({"first": ["a"], "second": ["a"], "count": [many]})
    assert with_pmi(words, pairs)["pmi"].to_list() == [pytest.approx(0)]


def test_a_corpus_of_small_parts_is_summed_a_few_times_not_once_for_each_part(monkeypatch):
    summed, concat = [], pl.concat
    monkeypatch.setattr(
        pl, "concat", lambda parts: summed.append(sum(map(len, parts))) or concat(parts)
    )
    texts = [pl.Series([f"a{number} b{number}"]) for number in range(128)]
    words, pairs = count_ngrams(texts)
    assert (len(words), len(pairs)) == (256, 128)
    assert sum(summed) < 10 * (256 + 128)
