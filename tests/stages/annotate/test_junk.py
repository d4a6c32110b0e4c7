"""Junk: equal to a plain count of words and letters, known captions, and wordings of others."""

import re
from itertools import groupby
from math import sqrt

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipmill.stages.annotate.junk import EVEN, FEW, FURNITURE, LEFT, SIGNS, junk, spam_words

WORDS = st.sampled_from(
    [
        *list(spam_words())[::9],
        "Cat",
        "icon",
        "IMG_0042.jpg",
        "größe",
        "click here",
        "50%",
        "!!",
        "…",
    ]
)
CAPTIONS = st.lists(WORDS, max_size=20).map(" ".join) | st.text("aB1 .,_-é猫!/", max_size=30)


def scores(texts: list) -> dict:
    return junk(pa.table({"text": pa.array(texts, pa.string())}), spam_words()).to_pydict()


def spam(text: str) -> float:
    """The same, word by word."""
    runs = ["".join(run) for is_letter, run in groupby(text.lower(), str.isalpha) if is_letter]
    words = [run for run in runs if len(run) >= 3]
    found = sum(spam_words().get(word, 0) for word in set(words))
    found += sum(weight for sign, weight in SIGNS.items() if re.search(sign, text))
    even = found / sqrt(max(1, len(words) / FEW))
    return even / (even + EVEN)


def boilerplate(text: str) -> float:
    letters, others = (sum(map(str.isalpha, each)) for each in (text, re.sub(FURNITURE, " ", text)))
    return ((letters - others) / letters if letters else 1) * LEFT / (LEFT + others)


@settings(deadline=None)  # the first call imports polars
@given(st.lists(CAPTIONS, max_size=20))
def test_scores_are_those_of_a_count_word_by_word(texts):
    found = scores(texts)
    assert found["caption_spam"] == pytest.approx([spam(text) for text in texts])
    assert found["caption_boilerplate"] == pytest.approx([boilerplate(text) for text in texts])


@pytest.mark.parametrize(
    "text",
    [
        "a dog beside the river",
        "Ace of spades",
        "cat face, animal, pet",
        "un chat noir",
        "猫の顔",
        "A canvas of 640 x 480 pixels, before and after scaling",
    ],
)
def test_a_caption_that_says_what_is_seen_scores_low_in_both(text):
    found = scores([text])
    assert found["caption_spam"] == [0]
    assert found["caption_boilerplate"][0] < 0.2


@pytest.mark.parametrize(
    "text",
    [  # no planted text has one of these wordings
        "Buy cheap prescription drugs, worldwide delivery",
        "50% discount on all handbags, offer valid this week",
        "You have won a prize, claim your cash now",
        "Unlimited ringtones, reply to unsubscribe",
        "Tabby cat, free download, hd, 4k, png, vector, stock",
        "Cool tiger iPhone wallpaper, lock screen, 4k ultra hd",
        "Red chair | Official Online Store | Free Returns",
    ],
)
def test_an_advertisement_scores_above_what_is_seen(text):
    assert scores([text])["caption_spam"][0] > 0.4


@pytest.mark.parametrize(
    "text",
    ["", "  ", "1234", "DSCN0815.JPG", "../_images/plot_001.png", "[Hinweis]", "Photo of the"],
)
def test_what_would_fit_any_picture_is_boilerplate_alone(text):
    assert scores([text])["caption_boilerplate"] == [1]


def test_a_picture_named_beside_furniture_is_half_told():
    whole, half, little = scores(["icon", "cat icon", "striped cat icon"])["caption_boilerplate"]
    assert whole == 1
    assert half == pytest.approx(4 / 7 * 4 / 7)
    assert little < half


def test_a_long_text_needs_more_words_that_sell_than_a_short_one():
    short, long = scores(["cheap sofa", "cheap sofa " + "in the big blue garden " * 20])[
        "caption_spam"
    ]
    assert 0 < long < short / 2


def test_no_text_has_no_score_and_spares_its_neighbours():
    found = scores([None, "cat"])
    assert found["reason"] == ["no_text", None]
    assert found["caption_spam"][0] is None
    assert found["caption_boilerplate"] == [None, 0]


def test_a_word_that_sells_is_whole_in_lower_case_and_weighs_something():
    assert len(spam_words()) > 200
    assert all(re.fullmatch("[a-z]{3,}", word) for word in spam_words())
    assert min(spam_words().values()) > 0
