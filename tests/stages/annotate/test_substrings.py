"""Every pattern in every text, against `in`: adversarial texts, edges, equal hashes, windows."""

import numpy as np
import pyarrow as pa
import pytest

from clipmill.stages.annotate import _substrings as substrings
from clipmill.stages.annotate._spacing import padded, spaced
from clipmill.stages.annotate._substrings import Finder

WORDS = [
    "a",
    "b",
    "ab",
    "ba",
    "dog",
    "dogs",
    "Dog",
    "x-y",
    "3.5",
    "U.S.",
    "中",
    "文",
    "中文a",
    "🐕",
]
GLUE = ["", " ", "  ", ",", ", ", ".", "\t", "\n", "!", "`", "-", "'", "(", " , "]


def adversarial(count: int, most: int, seed: int) -> list[str]:
    """Few words, much glue: nearly every text nearly matches something."""
    rng = np.random.default_rng(seed)
    return [
        "".join(
            part
            for _ in range(rng.integers(0, most))
            for part in (WORDS[rng.integers(len(WORDS))], GLUE[rng.integers(len(GLUE))])
        )
        for _ in range(count)
    ]


def published_spacing(text: str) -> str:
    text = f" {text} "
    for mark in ",.;:?!`":
        text = text.replace(mark, f" {mark} ")
    return text.translate(str.maketrans("\t\n\r", "   "))


def found(texts: list[str], concepts: list[str], rule: str = "metaclip") -> list[list[int]]:
    finder = Finder(padded(pa.array(concepts, pa.string()), rule))
    count_N, pattern_M = finder.find(spaced(pa.array(texts, pa.string()), rule))
    end_N = np.cumsum(count_N)
    return [part.tolist() for part in np.split(pattern_M, end_N)[: len(texts)]]


@pytest.fixture(scope="module")
def captions():
    return adversarial(2_500, 7, seed=0)


@pytest.fixture(scope="module")
def entries():
    return [entry for entry in dict.fromkeys(adversarial(600, 4, seed=1)) if entry.strip()]


def test_the_published_rule_equals_brute_force_on_thousands_of_captions(captions, entries):
    spaces = [published_spacing(text) for text in captions]
    brute = [[i for i, entry in enumerate(entries) if f" {entry} " in text] for text in spaces]
    assert found(captions, entries) == brute
    assert sum(map(len, brute)) > 2_250
    assert sum(not some for some in brute) > 25


@pytest.mark.parametrize("rule", ["metaclip2", "words"])
def test_open_sides_equal_brute_force_on_thousands_of_captions(rule, captions, entries):
    patterns = padded(pa.array(entries, pa.string()), rule).to_pylist()
    first = {pattern: i for i, pattern in reversed(list(enumerate(patterns))) if pattern}
    whole = spaced(pa.array(captions, pa.string()), rule).utf8.tobytes().split(b"\xff")[:-1]
    texts = [text.decode() for text in whole]
    brute = [sorted(i for pattern, i in first.items() if pattern in text) for text in texts]
    assert found(captions, entries, rule) == brute


@pytest.mark.parametrize(
    ("text", "entry", "matches"),
    [
        ("A dog, a cat.", "dog", True),
        ("A dog, a cat.", "Dog", False),
        ("dog-friendly", "dog", False),
        ('a "dog"', "dog", False),
        ("U.S. Army", "U.S.", False),
        ("U.S. Army", "Army", True),
        ("red dog", "red dog", True),
        ("red, dog", "red dog", False),
        ("red\tdog", "red dog", True),
        ("a,b", "a , b", True),
        ("dogs", "dog", False),
        ("a dog", "a dog", True),
        ("dog", "dog", True),
    ],
)
def test_known_answers_of_the_published_rule(text, entry, matches):
    assert found([text], [entry]) == [[0] if matches else []]


def test_each_pattern_counts_once_a_text_in_ascending_order():
    assert found(["b a b a b"], ["b", "a", "b a"]) == [[0, 1, 2]]


def test_no_match_reaches_into_the_next_text():
    assert found(["red", "dog"], ["red dog", "red", "dog"]) == [[1], [2]]
    assert found(["中", "文"], ["中文"], "metaclip2") == [[], []]


def test_of_equal_patterns_the_first_is_found_and_an_empty_one_never():
    assert found(["the dog"], ["dog", "The", "the", "!!!", "DOG"], "words") == [[0, 1]]


def test_no_texts_and_no_patterns_give_no_matches():
    assert found([], ["a"]) == []
    assert found(["a", ""], []) == [[], []]
    assert found(["", " "], ["a"]) == [[], []]


def test_a_long_pattern_and_a_long_text():
    entry = " ".join(["word"] * 200)
    text = " ".join(["word"] * 30_000)
    assert found([text, "word " * 199], [entry, "word", "other"]) == [[0, 1], [1]]


def test_a_hash_decides_nothing():
    """Under the hash of another pattern, nothing is found that does not stand there."""
    finder = Finder(padded(pa.array(["dog", "red cat"]), "metaclip"))
    for table in (finder.words, finder.characters):
        table[1][table[1] >= 0] ^= 1  # every hash leads to the other pattern
    count_N, _ = finder.find(spaced(pa.array(["a dog", "red cat", "dog red cat"]), "metaclip"))
    assert count_N.tolist() == [0, 0, 0]


def test_two_patterns_of_one_hash_are_refused_aloud(monkeypatch):
    monkeypatch.setattr(substrings, "_fill", lambda *table: False)
    with pytest.raises(ValueError, match="same hash"):
        Finder(padded(pa.array(["abc", "xyz"]), "metaclip"))


def test_more_matches_than_there_was_room_for_are_all_found():
    entries = [f"w{i}" for i in range(1000)]
    assert found([" ".join(entries), "w7"], entries) == [list(range(1000)), [7]]


def test_half_a_million_patterns_fit_into_a_worker():
    rng = np.random.default_rng(0)
    letters = rng.integers(97, 123, (500_000, 14)).astype(np.uint8)
    letters[:, 7] = 32
    entries = pa.array(letters.view("S14").ravel().astype(str))
    assert Finder(padded(entries, "metaclip")).size_bytes < 100e6
