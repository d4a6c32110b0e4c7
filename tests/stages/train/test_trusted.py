"""What pairs will not teach: each lack is told in one sentence, and none where none is."""

import itertools
import re

import numpy as np
import pyarrow as pa
import pytest

from stages.ops.vectors import from_matrix
from stages.train._trusted import FEW, notes

ROWS = 240
PLACES = ("under the old bridge", "beside a quiet river", "in the morning market", "on my desk")
THINGS = ("a small brown dog", "seven green apples", "the yellow train", "a broken umbrella")
FRENCH = ("un petit chien brun", "sept pommes vertes", "le train jaune", "un parapluie")
OÙ = ("sous le vieux pont", "au bord de la rivière", "dans le marché du matin", "sur la table")


def captions(things=THINGS, places=PLACES, rows=ROWS) -> list[str]:
    pairs = itertools.cycle(itertools.product(things, places))
    return [f"{thing} {place} {row}" for row, (thing, place) in zip(range(rows), pairs)]  # noqa: B905


MIXED = [*captions(rows=ROWS // 2), *captions(FRENCH, OÙ, rows=ROWS // 2)]


def pairs(texts: list[str], shared: float = 0.0) -> pa.Table:
    """Captions with vectors that have a direction in common."""
    vector_NT = np.random.default_rng(0).standard_normal((len(texts), 64))
    vector_NT /= np.linalg.norm(vector_NT, axis=1, keepdims=True)
    vector_NT[:, 0] += shared
    return pa.table({"text": texts, "text_features": from_matrix(vector_NT)})


def test_many_captions_of_several_languages_and_subjects_have_no_note():
    assert notes(pairs(MIXED)) == []
    assert notes(pairs([])) == []


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (pairs(MIXED[60:180]), "120 pairs to learn from are few"),
        (pairs(captions()), "in one language, 'en'"),
        (pairs(captions(FRENCH, OÙ)), "in one language, 'fr'"),
        (pairs(MIXED, shared=0.8), r"alike, as of one group \(cosine 0.\d\d\)"),
        (
            pairs([MIXED[row % 8 * 30] for row in range(ROWS)]),
            "240 pairs learnt from have 8 captions",
        ),
    ],
    ids=["few", "English", "French", "one group", "few captions"],
)
def test_each_lack_is_one_sentence_with_what_to_expect(table, said):
    (note,) = notes(table)
    assert re.search(said, note)
    assert "expect scores" in note
    assert "\n" not in note


def test_captions_too_short_to_tell_are_of_no_language_and_enough_are_not_few():
    assert notes(pairs([f"{row}" for row in range(FEW)])) == []
