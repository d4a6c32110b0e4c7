"""Caption: equal to Python's counts on every code point, and known answers for the rest."""

import sys

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipmill.stages.annotate.caption import caption

TEXT = st.text(max_size=200) | st.text(
    " \t\n\v\f\r\x1c\x1f\x85\xa0\u2003\u200b\u3000ab", max_size=30
)


def counts(texts: list) -> dict:
    return caption(pa.table({"text": pa.array(texts, pa.string())})).to_pydict()


@pytest.mark.slow("a million code points")
def test_words_and_characters_are_pythons_on_every_code_point():
    points = [p for p in range(sys.maxunicode + 1) if not 0xD800 <= p < 0xE000]  # no surrogates
    rows = [points[start : start + 16] for start in range(0, len(points), 16)]
    texts = ["".join(f"a{chr(p)}b" for p in row) for row in rows]
    out = counts(texts)
    assert out["caption_words"] == [len(text.split()) for text in texts]
    assert out["caption_chars"] == [len(text) for text in texts]


@settings(deadline=None)  # the first call imports polars
@given(st.lists(TEXT, max_size=20))
def test_words_and_characters_are_pythons(texts):
    out = counts(texts)
    assert out["caption_words"] == [len(text.split()) for text in texts]
    assert out["caption_chars"] == [len(text) for text in texts]


@pytest.mark.parametrize(
    ("text", "tokens"),  # as fasttext.tokenize, version 0.9.2, cuts them
    [
        ("", 0),
        (" ", 0),
        ("\n", 1),
        ("rose", 1),
        ("rose\n", 2),
        ("\nrose", 2),
        ("a\n\nb", 4),
        ("a b\n\nc\u00a0d\0e", 6),
        ("a\u3000b\u2003c\x1cd\x85e", 1),  # no space of Unicode's parts tokens
        ("a\tb\vc\fd\re\0f", 6),
    ],
)
def test_tokens_are_fasttexts(text, tokens):
    assert counts([text])["caption_tokens"] == [tokens]


def read_word_count(text: str) -> int:
    """fastText's Dictionary::readWord, byte by byte, until it returns false."""
    data, at, tokens, inside = text.encode(), 0, 0, False
    while at < len(data):
        if data[at : at + 1] not in (b" ", b"\n", b"\r", b"\t", b"\v", b"\f", b"\0"):
            inside = True
        elif inside:
            tokens, inside = tokens + 1, False
            continue  # the separator is read again: a newline is a token of its own
        elif data[at : at + 1] == b"\n":
            tokens += 1
        at += 1
    return tokens + inside


@settings(deadline=None)
@given(st.lists(TEXT | st.text(" \n\r\t\v\f\0\x1c\xa0a🌹", max_size=20), max_size=20))
def test_tokens_are_those_of_fasttexts_loop(texts):
    assert counts(texts)["caption_tokens"] == [read_word_count(text) for text in texts]


@pytest.mark.parametrize(
    ("text", "letters"),
    [("", 0), ("abc 123!", 3), ("犬の写真", 4), ("e\u0301", 2), ("हिन्दी", 6), ("🚀 $9.99", 0)],
    ids=["empty", "latin", "han", "combining", "devanagari", "none"],
)
def test_letters_of_any_script(text, letters):
    assert counts([text])["caption_letters"] == [letters]


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ("a <b>red</b> rose", 2),
        ("tom &amp; jerry &#39;s &#x1F600;", 3),
        ("<!-- note --><br/>", 2),
        ("1 < 2 and 3 > 2", 0),
        ("AT&T, R&B;", 1),
        ("I <3 you", 0),
    ],
)
def test_markup(text, tags):
    assert counts([text])["caption_markup"] == [tags]


def windows_1252(data: bytes) -> str:
    """As browsers read it: the five bytes without a character stay control characters."""
    return "".join(
        chr(byte) if byte in b"\x81\x8d\x8f\x90\x9d" else bytes([byte]).decode("cp1252")
        for byte in data
    )


@settings(deadline=None)
@given(st.text(max_size=50))
def test_every_character_past_ascii_counts_once_after_a_wrong_decoding(text):
    beyond_ascii = sum(ch > "\x7f" for ch in text)
    garbled = [text.encode().decode("latin-1"), windows_1252(text.encode())]
    assert counts(garbled)["caption_mojibake"] == [beyond_ascii] * 2


@pytest.mark.parametrize(
    "text",
    [
        "café",
        "Ärger in Österreich",
        "São Paulo, NÃO",
        "Привет",
        "犬",
        "naïve “quote” \u2013 25 °C",
        "Àé",
    ],
)
def test_well_decoded_text_counts_no_garbled_character(text):
    assert counts([text])["caption_mojibake"] == [0]


@pytest.mark.parametrize(
    ("text", "is_filename"),
    [
        ("IMG_4211.jpg", True),
        ("DSC 0042.JPEG ", True),
        ("logo.png", True),
        ("https://a.example/cat.webp", True),
        ("a jpg of a cat", False),
        ("a cat.", False),
        ("cat.jpg, large", False),
    ],
)
def test_filename(text, is_filename):
    assert counts([text])["caption_is_filename"] == [is_filename]


def test_undefined_row_is_null_with_a_reason_and_spares_its_neighbours():
    out = counts(["a b", None, ""])
    assert out["caption_words"] == [2, None, 0]
    assert out["caption_is_filename"] == [False, None, False]
    assert out["reason"] == [None, "no_text", None]


def test_a_caption_of_a_megabyte_is_counted_whole():
    out = counts(["ab " * 333_333])
    assert out["caption_words"] == [333_333]
    assert out["caption_chars"] == [999_999]
