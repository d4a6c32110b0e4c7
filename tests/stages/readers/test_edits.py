"""Edited captions: how often, by what, and lists that are none."""

import pytest

from clipmill.pipeline.errors import StageError
from clipmill.stages.readers._edits import Edits, read_edits

TEXT = "a small dog runs on the wide beach at night"


def test_captions_are_edited_as_often_as_the_paper_says_and_by_the_list():
    edits, words = Edits({"small": ("little", "tiny")}), TEXT.split()
    drawn = [edits(TEXT, coin).split() for coin in range(2000)]
    assert drawn[:9] == [edits(TEXT, coin).split() for coin in range(9)]
    replaced = [one for one in drawn if {"little", "tiny"} & {*one}]
    assert 0.35 < len(replaced) / 2000 < 0.43  # 0.4, less those whose new word is deleted
    assert {word for one in drawn for word in one} == {*words, "little", "tiny"}
    shorter = sum(len(one) < len(words) for one in drawn)
    assert 0.09 < shorter / 2000 < 0.17  # 0.2 of them, of which 0.35 lose none of ten words
    moved = [one for one in drawn if sorted(one) == sorted(words) and one != words]
    assert 0.12 < len(moved) / 2000 < 0.25
    assert {edits(word, 5) for word in ("", "dog")} == {"", "dog"}
    assert all(edits("dog", coin) == "dog" for coin in range(99))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"big, large\n\n\nsmall\n", "line 4 is 'small'"),
        (b"a,,b", "line 1"),
        (b"\xff", "no list"),
    ],
)
def test_a_list_that_is_none_is_refused(tmp_path, text, found):
    path = tmp_path / "words.txt"
    path.write_bytes(text)
    with pytest.raises(StageError, match=found):
        read_edits(str(path))
    with pytest.raises(StageError, match="no list of words"):
        read_edits(str(tmp_path / "none.txt"))


def test_a_word_is_found_in_any_case(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("\ufeffBig, large, very large\n\nsmall , little\nBIG, huge\n")
    assert read_edits(str(path)).synonyms == {
        "big": ("large", "very large", "huge"),
        "small": ("little",),
    }
