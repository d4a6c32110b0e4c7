"""What pairs will not teach: each lack is told in one sentence, and none where none is."""

import itertools
import re

import numpy as np
import pyarrow as pa
import pytest

from clipmill.stages.ops.vectors.matrices import from_matrix
from clipmill.stages.train.filter_network import FEW, notes

ROWS = 240
PLACES = ("under the old bridge", "beside a quiet river", "in the morning market", "on my desk")
THINGS = ("a small brown dog", "seven green apples", "the yellow train", "a broken umbrella")
FRENCH = ("un petit chien brun", "sept pommes vertes", "le train jaune", "un parapluie")
OÙ = ("sous le vieux pont", "au bord de la rivière", "dans le marché du matin", "sur la table")


def captions(things=THINGS, places=PLACES, rows=ROWS) -> list[str]:
    pairs = itertools.cycle(itertools.product(things, places))
    return [f"{thing} {place} {row}" for row, (thing, place) in zip(range(rows), pairs)]  # noqa: B905


ENGLISH = captions()


def pairs(texts: list[str], shared: float = 0.0) -> pa.Table:
    """Captions with vectors that have a direction in common."""
    vector_NT = np.random.default_rng(0).standard_normal((len(texts), 64))
    vector_NT /= np.linalg.norm(vector_NT, axis=1, keepdims=True)
    vector_NT[:, 0] += shared
    return pa.table({"text": texts, "text_features": from_matrix(vector_NT)})


def test_many_captions_of_several_subjects_have_no_note():
    assert notes(pairs(ENGLISH)) == []
    assert notes(pairs([])) == []


def mostly_english(others: int) -> list[str]:
    return [*captions(rows=ROWS - others), *captions(FRENCH, OÙ, rows=others)]


def test_a_few_captions_in_other_languages_are_not_told():
    assert notes(pairs(mostly_english(ROWS // 8))) == []


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (pairs(ENGLISH[60:180]), "120 pairs to learn from are few"),
        (pairs(mostly_english(ROWS // 4)), "2[3-7]% of captions learnt from are in other"),
        (pairs(captions(FRENCH, OÙ)), "100% of captions learnt from are in other languages"),
        (pairs(ENGLISH, shared=0.8), r"alike, as of one group \(cosine 0.\d\d\)"),
        (
            pairs([ENGLISH[row % 8 * 30 + row % 8] for row in range(ROWS)]),
            "240 pairs learnt from have 8 captions",
        ),
    ],
    ids=["few", "a quarter French", "French", "one group", "few captions"],
)
def test_each_lack_is_one_sentence_with_what_to_expect(table, said):
    (note,) = notes(table)
    assert re.search(said, note)
    assert "expect " in note
    assert "\n" not in note


def test_captions_too_short_to_tell_are_of_no_language_and_enough_are_not_few():
    assert notes(pairs([f"{row}" for row in range(FEW)])) == []
