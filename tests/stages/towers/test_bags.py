"""token_bags: what is a token, what a long caption loses, texts without a word."""

import zlib

import numpy as np
import pytest

from clipmill.stages.towers.nano import token_bags

BUCKETS = 32_768


def bag(text: str, most: int = 48) -> list[int]:
    token_T, starts = token_bags([text], BUCKETS, most)
    assert starts.tolist() == [0, len(token_T)]
    return token_T.tolist()


def test_a_bag_holds_words_then_the_4_grams_of_each_with_its_ends_marked():
    expected = [" red", " ox", "<red", "red>", "<ox>"]
    assert bag("Red ox!") == [zlib.crc32(token.encode()) % BUCKETS for token in expected]


@pytest.mark.parametrize("other", ["RED OX", "red, ox", "  red\nox "])
def test_case_and_what_is_no_letter_do_not_matter(other):
    assert bag(other) == bag("red ox")


def test_a_long_caption_loses_pieces_before_words():
    words = bag("one two three", 3)
    assert bag("one two three")[:3] == words
    assert len(bag("word " * 90)) == 48


def test_texts_without_a_word_have_an_empty_bag_and_leave_their_neighbours_alone():
    token_T, starts = token_bags(["", "red", "!?", "ox"], BUCKETS, 48)
    assert starts.tolist() == [0, 0, 3, 3, 5]
    assert token_T.tolist() == bag("red") + bag("ox")


def test_no_text_is_no_bag():
    token_T, starts = token_bags([], BUCKETS, 48)
    assert (token_T.dtype, starts.tolist()) == (np.int32, [0])


def test_other_scripts_and_lone_surrogates_are_words_too():
    assert len(bag("красный")) == 1 + 6
    assert bag("\ud800a")
