"""The labelled set is what it was when the checks were tuned on one half of it."""

import hashlib
import json
from collections import Counter
from dataclasses import astuple

from tests.stages.score.planted import EACH, FAULTS, GOOD, labelled

# A change of the set is a change of every figure that is measured on it.
DIGEST = "4c991eba03e35081"


def test_each_class_has_a_hundred_captions_in_each_half():
    count = Counter((it.fault, it.held) for it in labelled())
    assert {fault for fault, _ in count} == {None, *FAULTS}
    assert all(count[fault, held] >= 100 for fault in FAULTS for held in (True, False))
    assert min(count[None, held] for held in (True, False)) >= 900
    assert count.total() == GOOD + EACH * len(FAULTS)


def test_no_wording_is_in_both_halves():
    by_wording = ("refusal", "disclaimer", "markup", "language")
    held, tuned = (
        {it.how for it in labelled() if it.held is half and it.fault in by_wording}
        for half in (True, False)
    )
    assert min(len(held), len(tuned)) > 100
    assert not held & tuned


def test_the_set_is_the_one_that_figures_were_measured_on():
    text = json.dumps([astuple(it) for it in labelled()])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == DIGEST
