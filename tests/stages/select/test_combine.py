"""Combine: conditions against Python's own, who decides, multisets, what is refused."""

from itertools import product

import numpy as np
import pyarrow as pa
import pytest

from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.stage import Selects
from clipmill.stages.select.combine import MOST_NAMES, Combine, condition


@pytest.fixture
def combined(memory_context, memory_shards):
    """The stored rows of a run over rows with these verdicts and times, by select."""

    def run(keeps: dict[str, list], times: dict[str, list] | None = None, image=None, **settings):
        (rows,) = {len(keep) for keep in keeps.values()}
        uids = [number.to_bytes(16) for number in range(rows)]
        columns = {"uid": pa.array(uids, pa.binary(16))}
        columns |= {f"{name}.keep": pa.array(keep, pa.bool_()) for name, keep in keeps.items()}
        columns |= {
            f"{name}.repeats": pa.array(count, pa.int32()) for name, count in (times or {}).items()
        }
        if image:
            columns["image_bytes"] = pa.array(image, pa.int64())
        ctx = memory_context()
        Combine(**settings).run(Inputs(rows=memory_shards(pa.table(columns))), ctx)
        return pa.concat_tables(ctx.stored)

    return run


CONDITIONS = [
    "a",
    "a AND b",
    "a or b",
    "a And Not b",
    "a AND NOT (b OR c)",
    "(a OR b) AND NOT c",
    "a AND b OR c",
    "a OR b AND c",
    "NOT a AND b",
    "NOT (NOT a OR NOT b)",
    "a AND NOT NOT b",
    "NOT (a AND b) AND (a OR b)",
    "((a))",
    "(" * 50 + "a" + ")" * 50,
]


@pytest.mark.parametrize("where", CONDITIONS)
def test_a_condition_is_what_python_says_of_every_combination(where, combined):
    names = condition(where).names
    every = list(product([False, True], repeat=len(names)))
    keeps = {name: [row[k] for row in every] for k, name in enumerate(names)}
    out = combined(keeps, where=where)
    python = where.lower()
    expected = [eval(python, {}, dict(zip(names, row, strict=True))) for row in every]
    assert out["keep"].to_pylist() == expected
    for row, stays, reason in zip(every, expected, out["reason"].to_pylist(), strict=True):
        assert stays == (reason is None)
        if not stays:
            how, name = reason.split(":")
            assert {"kept_by": True, "dropped_by": False}[how] == row[names.index(name)]


def test_the_reason_is_the_first_select_on_the_shortest_way_to_staying(combined):
    every = list(product([False, True], repeat=3))
    keeps = {name: [row[k] for row in every] for k, name in enumerate("abc")}
    out = combined(keeps, where="(a OR b) AND NOT c")
    said = dict(zip(every, out["reason"].to_pylist(), strict=True))
    assert said[False, False, False] == "dropped_by:a"
    assert said[True, False, True] == "kept_by:c"
    assert said[False, False, True] == "dropped_by:a"
    out = combined(keeps, where="a AND b AND c")
    said = dict(zip(every, out["reason"].to_pylist(), strict=True))
    assert said[True, False, True] == "dropped_by:b"
    assert said[False, False, True] == "dropped_by:a"


def test_a_row_counts_the_weights_of_the_selects_that_keep_it(combined):
    keeps = {"a": [True, True, False, False], "b": [True, False, True, False]}
    out = combined(keeps, repeats={"a": 1, "b": 2})
    assert out["repeats"].to_pylist() == [3, 1, 2, None]
    assert out["repeats"].type == pa.int32()
    assert out["keep"].to_pylist() == [True, True, True, False]
    assert out["reason"].to_pylist() == [None, None, None, "dropped_by:a"]


def test_a_weight_multiplies_what_a_row_repeats_at_that_select(combined):
    keeps = {"a": [True, True, True], "b": [True, False, True]}
    out = combined(keeps, times={"a": [5, None, 2]}, repeats={"a": 3, "b": 1})
    assert out["repeats"].to_pylist() == [16, 3, 7]


def test_a_row_without_an_image_stays_out_whoever_keeps_it(combined):
    for settings in ({"where": "a OR b"}, {"repeats": {"a": 1, "b": 1}}):
        out = combined({"a": [True, True], "b": [True, False]}, image=[None, 9], **settings)
        assert out["keep"].to_pylist() == [False, True]
        assert out["reason"].to_pylist() == ["undefined:image_bytes", None]


def test_a_verdict_that_is_missing_keeps_nothing(combined):
    out = combined({"a": [None, True], "b": [True, None]}, where="a AND NOT b")
    assert out["keep"].to_pylist() == [False, True]


def test_a_count_past_32_bits_is_refused(combined):
    with pytest.raises(StageError, match="2,147,483,648 times"):
        combined({"a": [True]}, times={"a": [1 << 30]}, repeats={"a": 2})
    highest = (1 << 31) - 1
    out = combined({"a": [True]}, times={"a": [highest]}, repeats={"a": 1})
    assert out["repeats"].to_pylist() == [highest]
    out = combined({"a": [True]}, times={"a": [1 << 30]}, image=[None], repeats={"a": 2})
    assert out["repeats"].to_pylist() == [None]


def test_it_answers_the_protocol_and_has_no_threshold():
    stage = Combine(where="a AND NOT b")
    assert isinstance(stage, Selects)
    assert stage.thresholds() == ()
    assert stage.explain("kept_by:b", {}) == "the condition is a AND NOT b"
    assert stage.explain("undefined:image_bytes", {}) == ""
    assert "none of a, b" in Combine(repeats={"a": 1, "b": 2}).explain("dropped_by:a", {})


def test_decisions_over_the_most_names_are_a_table_of_all_of_them():
    names = [f"s{number}" for number in range(MOST_NAMES)]
    asked = condition(" OR ".join(names))
    assert len(asked.holds) == 1 << MOST_NAMES
    assert np.flatnonzero(~asked.holds).tolist() == [0]
    assert asked.reasons == ("dropped_by:s0",)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "neither `where` nor `repeats`"),
        ({"where": "a", "repeats": {"a": 1}}, "both"),
        ({"where": "NOT a"}, "keeps rows that none of its selects keeps"),
        ({"where": "a OR NOT b"}, "keeps rows that none of its selects keeps"),
        ({"where": "a AND NOT a"}, "keeps no row"),
        ({"where": "a AND"}, "breaks off"),
        ({"where": " "}, "breaks off"),
        ({"where": "a b"}, "`b` cannot stand"),
        ({"where": "AND a"}, "`AND` cannot stand"),
        ({"where": "(a OR b"}, "a bracket is not closed"),
        ({"where": "(" * 300 + "a" + ")" * 300}, "too deep, with 601 words"),
        ({"where": "NOT " * 10_000 + "a"}, "too deep, with 10,001 words"),
        ({"where": "a)"}, "`\\)` cannot stand"),
        ({"where": "a > 3"}, "`>` cannot stand"),
        ({"where": "a.keep"}, "`.keep` cannot stand"),
        ({"where": " OR ".join(f"s{n}" for n in range(13))}, "13 selects, and 12 are the most"),
        ({"repeats": {f"s{n}": 1 for n in range(13)}}, "13 selects, and 12 are the most"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, said):
    with pytest.raises(RecipeError, match=said):
        Combine(**settings)
