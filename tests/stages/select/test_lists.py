"""Functions over lists in `where`: truth as plain Python says it, and what a plan refuses."""

import operator
import random

import pyarrow as pa
import pytest

from clipmill.metadata.schema import TEXT_LIST
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.stages.select import _verdicts
from clipmill.stages.select._sql import as_frame, check, conjuncts, truth
from clipmill.stages.select.where import Where

SCHEMA = pa.schema(
    {
        "scores": pa.list_(pa.float32()),
        "words": pa.list_(pa.int32()),
        "bad": pa.list_(pa.bool_()),
        "langs": pa.list_(pa.string()),
        "texts": TEXT_LIST,
        "best.texts": TEXT_LIST,
        "limit": pa.float32(),
        "text": pa.string(),
    }
)
SIGNS = {">=": operator.ge, "<": operator.lt, "=": operator.eq}


def rows(count: int) -> list[dict]:
    """Rows whose lists are as long as one another, mostly; null, empty and with nulls inside."""
    rng = random.Random(0)
    made = []
    for _ in range(count):
        length = rng.choice([0, 1, 2, 3])
        values = {
            "scores": [rng.choice([None, float("nan"), 0.25, 0.5, 0.75]) for _ in range(length)],
            "words": [rng.choice([None, 1, 5, 9]) for _ in range(length)],
            "bad": [rng.choice([None, True, False]) for _ in range(length)],
            "langs": [rng.choice([None, "en", "de"]) for _ in range(length)],
            "texts": [
                rng.choice([None, text("a", "long"), text("b", "short")]) for _ in range(length)
            ],
        }
        values["best.texts"] = values["texts"]
        values["limit"] = rng.choice([None, 0.3, 0.6])
        values["text"] = rng.choice([None, "a", "abc"])
        for name in rng.choice([[], [], ["scores"], [*values]]):
            values[name] = None
        if values["words"] and rng.random() < 0.1:
            values["words"].append(5)
        made.append(values)
    return made


def text(said: str, label: str) -> dict:
    return {"text": said, "label": label, "source": None, "model": None, "prompt_id": None}


ROWS = rows(600)
TABLE = pa.Table.from_pylist(ROWS, SCHEMA)


def said(where: str) -> list:
    (conjunct,) = conjuncts(where)
    check(conjunct, TABLE.slice(0, 0))
    return truth(conjunct, as_frame(TABLE)).to_list()


def compared(value, sign: str, number):
    if value is None or number is None or value != value:
        return None
    return SIGNS[sign](value, number)


def any_of(truths: list | None) -> bool | None:
    if truths is None:
        return None
    return True if True in truths else None if None in truths else False


def all_of(truths: list | None) -> bool | None:
    if truths is None:
        return None
    return False if False in truths else None if None in truths else True


def both(a: bool | None, b: bool | None) -> bool | None:
    return all_of([a, b])


def each(row: dict, name: str, sign: str, number) -> list | None:
    values = row[name]
    return values if values is None else [compared(value, sign, number) for value in values]


def label(row: dict, name: str) -> list | None:
    texts = row[name]
    return texts and [compared(one and one["label"], "=", "short") for one in texts]


def opposite(truth: bool | None) -> bool | None:
    return None if truth is None else not truth


def two(row: dict) -> list | None:
    scores, words = row["scores"], row["words"]
    if scores is None or words is None or len(scores) != len(words):
        return None
    return [
        both(compared(score, ">=", 0.5), compared(count, "<", 9))
        for score, count in zip(scores, words, strict=True)
    ]


def known(row: dict, name: str) -> list:
    return [value for value in row[name] or () if value is not None and value == value]


def length(row: dict, name: str) -> int | None:
    return row[name] if row[name] is None else len(row[name])


def greatest(row: dict, name: str) -> float | None:
    return max(known(row, name), default=None)


PLAIN = {
    "any(scores >= 0.5)": lambda row: any_of(each(row, "scores", ">=", 0.5)),
    "all(scores >= 0.5)": lambda row: all_of(each(row, "scores", ">=", 0.5)),
    "NOT any(words < 5)": lambda row: opposite(any_of(each(row, "words", "<", 5))),
    "any(bad)": lambda row: any_of(row["bad"]),
    "all(bad IS NULL)": lambda row: all_of(row["bad"] and [it is None for it in row["bad"]]),
    "any(langs = 'en')": lambda row: any_of(each(row, "langs", "=", "en")),
    "any(texts.label = 'short')": lambda row: any_of(label(row, "texts")),
    "all(best.texts.label = 'short')": lambda row: all_of(label(row, "best.texts")),
    "any(scores >= 0.5 AND words < 9)": lambda row: any_of(two(row)),
    "all(scores >= 0.5 AND words < 9)": lambda row: all_of(two(row)),
    "any(scores >= limit)": lambda row: any_of(each(row, "scores", ">=", row["limit"])),
    "len(scores) >= 2": lambda row: compared(length(row, "scores"), ">=", 2),
    "length(text) >= 2": lambda row: compared(length(row, "text"), ">=", 2),
    "max(scores) >= 0.5": lambda row: compared(greatest(row, "scores"), ">=", 0.5),
    "min(words) < 5": lambda row: compared(min(known(row, "words"), default=None), "<", 5),
    "coalesce(max(words), 0) < 5": lambda row: (greatest(row, "words") or 0) < 5,
    "any(words < 5) OR any(bad)": lambda row: any_of(
        [any_of(each(row, "words", "<", 5)), any_of(row["bad"])]
    ),
}


@pytest.mark.parametrize("where", PLAIN)
def test_truth_is_that_of_plain_loops(where):
    answers = [PLAIN[where](row) for row in ROWS]
    assert said(where) == answers
    assert {True, False} <= set(answers)


def test_lists_without_items_and_without_a_list():
    table = pa.table(
        {"a": pa.array([None, [], [None], [1, None], [0, None]], pa.list_(pa.int32()))}
    )
    expected = {
        "any(a > 0)": [None, False, None, True, None],
        "all(a > 0)": [None, True, None, None, False],
        "len(a) = 0": [None, True, False, False, False],
        "max(a) > 0": [None, None, None, True, False],
        "max(a) IS NULL": [True, True, True, False, False],
    }
    for where, answers in expected.items():
        (conjunct,) = conjuncts(where)
        assert truth(conjunct, as_frame(table)).to_list() == answers, where


def test_a_float32_item_meets_a_literal_in_float32():
    table = pa.table({"a": pa.array([[0.3]], pa.list_(pa.float32()))})
    for where in ("any(a >= 0.3)", "max(a) >= 0.3", "all(a = 0.3)"):
        (conjunct,) = conjuncts(where)
        assert truth(conjunct, as_frame(table)).to_list() == [True], where


@pytest.mark.parametrize(
    ("where", "found", "do"),
    [
        (
            "any(limit > 0.3)",
            "asks the items of a list, and limit holds float",
            "write limit > 0.3",
        ),
        (
            "max(limit) > 0.3",
            "over rows, as limit is no list: limit holds float",
            "one row's limit",
        ),
        ("max(langs) > 'a'", "asks for numbers, and langs holds list<", "any(langs = …)"),
        ("scores > 0.3", "`scores > 0.3` takes a list for one value", "any(scores …), all(scores"),
        ("any(texts = 'a')", "more than one value of an item", "ask texts.label"),
        ("any(scores = 'a')", "compares a number with text", "scores is a number (float)"),
        ("any(scores)", "`scores` is a number (float), no condition", "scores = …"),
        ("any(langs > 3)", "compares text with a number", "in quotes"),
        ("len(scores) = 'a'", "compares a number with text", "CAST"),
    ],
)
def test_a_plan_says_in_plain_words_what_cannot_be_asked(where, found, do):
    stage = Where(where=where)
    with pytest.raises(StageError) as error:
        stage.check({name: SCHEMA.field(name).type for name in stage.reads})
    assert found in error.value.args[0]
    assert do in error.value.args[2]


@pytest.mark.parametrize(
    ("where", "found", "do"),
    [
        ("any(max(scores) > 1)", "inside another list function", "two conditions"),
        ("any(all(bad))", "inside another list function", "two conditions"),
        ("0.3 <= any(scores)", "no condition on an item", "any(0.3 <= scores)"),
        ("0.3 <= all(scores)", "no condition on an item", "all(0.3 <= scores)"),
        ("any(1 = 1)", "names no list", "any(scores > 0.3)"),
        ("sum(scores) > 3", "an aggregate", "one row's columns"),
        ("max(scores + 1) > 3", "an aggregate", "one row's columns"),
        ("any(a.b.c = 1)", "3 parts", "stage.column"),
    ],
)
def test_what_is_no_function_over_a_list_is_refused_as_it_is_read(where, found, do):
    with pytest.raises(RecipeError) as error:
        conjuncts(where)
    assert found in error.value.args[0]
    assert do.lower() in error.value.args[2].lower()


@pytest.mark.parametrize(
    ("where", "text", "item"),
    [
        ("max(scores) >= 0.5", "max(scores) >= 0.5", "max"),
        ("any(scores >= 0.5)", "any(scores >= 0.5)", "max"),
        ("any(scores < 0.5)", "any(scores < 0.5)", "min"),
        ("all(scores >= 0.5)", "all(scores >= 0.5)", "min"),
        ("0.5 <= min(scores)", "min(scores) >= 0.5", "min"),
        ("NOT any(scores > 0.5)", "all(scores <= 0.5)", "max"),
        ("any(NOT scores < 0.5)", "any(scores >= 0.5)", "max"),
        ("NOT all(NOT scores < 0.5)", "any(scores < 0.5)", "min"),
    ],
)
def test_a_number_inside_is_a_threshold_and_varies(where, text, item):
    stage = Where(where=where)
    (threshold,) = stage.thresholds()
    assert (threshold.text, threshold.item, threshold.column) == (text, item, "scores")
    rows = TABLE.append_column("uid", pa.array([bytes(16)] * len(TABLE), pa.binary(16)))
    for verdicts in stage.verdicts(threshold, [0.25, 0.75], rows, rows):
        other = truth(conjuncts(where.replace("0.5", f"{verdicts.value}"))[0], as_frame(TABLE))
        assert verdicts.keep.tolist() == other.fill_null(False).to_list()


def test_a_field_outside_of_any_and_all_is_told_where_it_stands():
    assert "any(texts.label …)" in Where(where="texts.label = 'short'").hint("texts.label")
    assert Where(where="any(texts.label = 'short')").reads == ("texts",)
    assert Where(where="any(a.texts.label = 'short' AND b.c > 2)").reads == ("a.texts", "b.c")


def test_an_equality_inside_is_no_threshold():
    assert not list(_verdicts.comparisons(conjuncts("any(words = 3)"), (), by_row=True))
