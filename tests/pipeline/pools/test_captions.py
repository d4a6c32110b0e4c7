from clipmill.pipeline.pools.captions import caption_forms, garbled, indirect_forms
from clipmill.pipeline.pools.chance import Chance
from clipmill.pipeline.pools.drawing import Words

FOX = Words("fox", ("animal", "red"), character="🦊", keywords=("fox", "wild"), noun="emoji")


def test_english_has_every_form_once_and_the_label_first():
    assert caption_forms(FOX, "en") == [
        "fox",
        "fox, animal, red",
        "🦊 fox",
        "Fox",
        "fox, wild",
        "fox emoji",
        "fox icon",
    ]


def test_other_languages_have_no_english_forms():
    assert caption_forms(Words("Fuchs", noun="emoji"), "de") == ["Fuchs"]


def test_indirect_captions_never_are_the_label_or_label_and_tags():
    assert indirect_forms(FOX) == ["animal, red", "fox, wild", "fox, wild, animal, red"]
    assert indirect_forms(Words("fox")) == []


def test_a_garbled_caption_never_equals_the_caption():
    for key in range(60):
        for text in ("fox", "ein Füchslein", "狐"):
            assert garbled(text, Chance(0, "source", str(key))) != text
