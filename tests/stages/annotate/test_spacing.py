"""The three rules: known answers, and each against the same rule written for one text."""

import unicodedata

import numpy as np
import pyarrow as pa
import pytest

from clipmill.stages.annotate._spacing import END, padded, spaced


def as_strings(texts: list, rule: str) -> list[str]:
    """The texts as spaced, one string each."""
    found = spaced(pa.array(texts, pa.string()), rule)
    assert np.flatnonzero(found.utf8 == END).tolist() == found.ends.tolist()
    return [text.decode() for text in found.utf8.tobytes().split(bytes([END]))[:-1]]


def patterns(concepts: list[str], rule: str) -> list[str]:
    return padded(pa.array(concepts, pa.string()), rule).to_pylist()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("A dog, a cat.", " A dog ,  a cat .  "),
        ("U.S. Army", " U . S .  Army "),
        ("don't 3.5", " don't 3 . 5 "),
        ("dog-friendly (cat)", " dog-friendly (cat) "),
        ("a\tb\r\nc", " a b  c "),
        ("`;:?!", "  `  ;  :  ?  !  "),
        ("", "  "),
        (None, "  "),
        ("犬。🐕", " 犬。🐕 "),
    ],
)
@pytest.mark.parametrize("rule", ["metaclip", "metaclip2"])
def test_published_spacing(text, answer, rule):
    assert as_strings([text], rule) == [answer]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The DOG", " the dog "),
        ("dog-friendly", " dog friendly "),
        ("dog, cat", " dog  cat "),
        ("  a \t b  ", "  a b  "),
        ("Straße ﬁne Ⅳ", " strasse fine iv "),
        ("C++", " c + + "),
        ("I♥NY ♥ x", " i ♥ ny ♥ x "),
        ("soft\u00adhyphen zero\u200bwidth ❤\ufe0f", " softhyphen zerowidth ❤ "),
        ("Cafe\u0301", " caf\u00e9 "),
        ("a\0b", " a b "),
        ("", "  "),
        (None, "  "),
        ("...", "     "),
    ],
)
def test_spacing_of_words(text, answer):
    assert as_strings([text], "words") == [answer]


@pytest.mark.parametrize("rule", ["metaclip", "metaclip2", "words"])
def test_a_text_is_spaced_alike_whatever_stands_beside_it(rule):
    texts = ["\u0301 mark first", "♥", None, "", "a♥", "♥b", "ends in blank ", " begins", "e", "\0"]
    assert as_strings(texts, rule) == [as_strings([text], rule)[0] for text in texts]
    assert as_strings([], rule) == []
    whole = pa.array(["never", *texts, "seen"])
    assert (spaced(whole[1:-1], rule).utf8 == spaced(pa.array(texts), rule).utf8).all()


def test_concepts_of_the_published_rule_stay_as_they_are():
    assert patterns(["dog", "U.S.", " a", "中"], "metaclip") == [" dog ", " U.S. ", "  a ", " 中 "]


def test_scripts_without_spaces_and_punctuation_need_none_on_their_side():
    entries = ["dog", "U.S.", "中文", "中a", "a中", "ไทย", "ひらがな", "(x)", "“x"]
    assert patterns(entries, "metaclip2") == [
        *(" dog ", " U.S.", "中文", "中a ", " a中", "ไทย", " ひらがな ", "(x)", "“x "),
    ]


def test_concepts_are_folded_like_captions_and_kana_need_no_space():
    entries = ["The U.S.", "ひらがな", "C++", "AT&T", "!!!", "中a"]
    assert patterns(entries, "words") == [
        *(" the u s ", "ひらがな", " c + + ", " at t ", "", "中a "),
    ]


def one_by_one(text: str) -> str:
    """The rule `words` as one would write it for one text."""
    text = unicodedata.normalize("NFKC", text.replace("\0", " "))
    text = unicodedata.normalize("NFKC", text.casefold())
    out, before = "", ""
    for character in text:
        kind = unicodedata.category(character)
        if kind == "Cf" or "\ufe00" <= character <= "\ufe0f":
            continue
        blank = kind[0] in "ZC"
        if blank and before == "blank":
            continue
        now = "blank" if blank else {"P": "mark", "S": "symbol"}.get(kind[0], "word")
        if "symbol" in (now, before) and before in ("word", "symbol") and now in ("word", "symbol"):
            out += " "
        out += " " if now in ("blank", "mark") else character
        before = now
    return f" {out} "


def test_words_of_random_texts_are_those_found_one_by_one():
    alphabet = list("aB1éß-'.,!+$♥🐕中か\u0301\u200b\ufe0f ﬁ\t\n\u3000\u2028ǅİ\u0915\u093f")
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(alphabet, rng.integers(0, 12))) for _ in range(3000)]
    assert as_strings(texts, "words") == [one_by_one(text) for text in texts]
