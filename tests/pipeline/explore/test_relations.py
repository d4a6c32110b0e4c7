"""How rules, scores and categories go together: as a loop over all rows says."""

import numpy as np
import pytest

from tests.pipeline.explore.test_counts import values


def asked(asker, **given):
    root = asker.session.facts()["roots"][0]["root"]
    return asker("relations", root=root, **given)


def test_rows_beyond_two_thresholds_are_counted(drawings):
    rules = {rule["text"]: rule for rule in asked(drawings)["rules"]}
    names = [rule["text"] for rule in asked(drawings)["rules"]]
    assert names == ["caption_words >= 2", "min_side >= 30", "aspect_ratio <= 3"]
    words = np.array(values(drawings, "caption.caption_words")) < 2
    small = np.array([it is not None and it < 30 for it in values(drawings, "look.min_side")])
    wide = np.array([it is not None and it > 3 for it in values(drawings, "look.aspect_ratio")])
    every = np.stack([words, small, wide]).astype(int)
    for place, name in enumerate(names):
        assert rules[name]["rows"] == every[place].sum()
        assert rules[name]["both"] == (every @ every.T)[place].tolist()
        assert rules[name]["alone"] == (every[place] & (every.sum(axis=0) == 1)).sum()


def test_scores_are_correlated_over_the_rows_that_meet_the_filters(drawings):
    a, b = "look.luma_std", "caption.caption_chars"
    many = {"is": "range", "column": "caption.caption_words", "low": 2, "high": None}
    answer = asked(drawings, columns=[a, b], filters=[many])
    (found,) = answer["correlations"]
    columns = [values(drawings, name) for name in (a, b, "caption.caption_words")]
    pairs = [
        (luma, chars)
        for luma, chars, words in zip(*columns, strict=True)
        if words >= 2 and None not in (luma, chars)
    ]
    assert found["rows"] == len(pairs) > 20
    assert found["r"] == pytest.approx(np.corrcoef(np.transpose(pairs))[0, 1])


def test_numbers_are_told_by_category_and_none_where_there_are_none(drawings, numbers):
    answer = asked(drawings, columns=["look.min_side"], category="look.reason")
    told = {line["value"]: line for line in answer["by"]["values"]}
    assert sum(line["rows"] for line in told.values()) == 60
    side = [it for it in values(drawings, "look.min_side") if it is not None]
    assert told[None]["quartiles"]["look.min_side"] == np.quantile(side, [0.25, 0.5, 0.75]).tolist()
    lost = [line for value, line in told.items() if value is not None]
    assert lost
    assert all(line["quartiles"]["look.min_side"] is None for line in lost)
    nobody = {"is": "uid", "begins": "00000000000000000000000000000000"}
    empty = asked(numbers, filters=[nobody], columns=["one.b", "two.c"], category="one.reason")
    assert (empty["rows"], empty["by"]["values"]) == (0, [])
    assert empty["correlations"][0]["r"] is None
