"""Synset names out of WordNet's files, as NLTK names them and MetaCLIP cuts them."""

import pytest

from clipmill.metadata.concepts.build import synset_names

NOUN = b"""  1 This is the licence, and no synset.
  2 dog 0 is not one.
00001740 03 n 02 entity 0 thing 0 000 | that which is
00002684 05 n 01 Canis_familiaris 0 001 @ 00001740 n 0000 | a dog
00003553 06 n 01 .22_caliber 0 000 | narrow
00004475 18 n 02 U.S. 0 America 0 000 | a country
00005787 18 n 01 entity 3 000 | again
"""
ADJECTIVE = b"""00001740 00 a 01 aglow(p) 0 000 | shining
00002098 00 s 01 galore(ip) 0 000 | in plenty
00002312 00 a 01 former(a) 0 000 | earlier
"""


def test_a_synset_is_named_by_its_first_word_in_small_letters_each_once():
    assert synset_names([NOUN]) == ["canis familiaris", "entity", "u"]


def test_marks_of_adjectives_are_no_part_of_a_name():
    assert synset_names([ADJECTIVE]) == ["aglow", "former", "galore"]


def test_a_line_that_is_cut_is_named():
    with pytest.raises(ValueError, match="no synset of WordNet's: '0174'"):
        synset_names([NOUN + b"0174"])
