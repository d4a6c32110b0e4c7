import pytest

from clipmill.pipeline.errors import MOST_NAMED, did_you_mean

STAGES = ("pool", "images", "worth", "curated", "curated_models")


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("pol", "'pool'"),
        ("IMAGES", "'images'"),  # whatever the case
        ("curate", "'curated'"),
        ("models", "'curated_models'"),  # part of it
        ("wroth", "'worth'"),
    ],
)
def test_a_slip_gets_the_word_that_was_meant(word, near):
    said = did_you_mean(word, STAGES)
    assert said.startswith("did you mean ")
    assert near in said
    assert said.endswith("?")


def test_the_same_word_in_other_letters_is_the_only_one():
    assert did_you_mean("URL", ["url", "url_col", "curl"]) == "did you mean 'url'?"


def test_two_that_are_near_are_both_named():
    assert did_you_mean("width_", ["width_a", "width_b", "x"]).count("'width_") == 2


def test_a_word_that_is_near_to_none_gets_the_list():
    said = did_you_mean("nosuch", STAGES, "the recipe has")
    assert said == "the recipe has: pool, images, worth, curated, curated_models"


def test_a_long_list_is_cut_and_says_so():
    said = did_you_mean("nosuch", [f"c{n}" for n in range(50)])
    assert said.endswith(f", … and {50 - MOST_NAMED} more")
    assert did_you_mean("a", []) == "there are: none"
