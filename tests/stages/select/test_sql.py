"""Row-wise SQL: conjuncts and columns, three-valued truth, the mended traps, what is refused."""

from random import Random

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.stages.select import _sql
from clipmill.stages.select._sql import _polars_sql, as_frame, conjuncts, truth

NAN = float("nan")
FRAME = as_frame(
    pa.table(
        {
            "words": pa.array([7, 2, None], pa.int32()),
            "zero": pa.array([0, 0, 0], pa.int32()),
            "text": ["xX", None, "Y"],
            "score": pa.array([0.26, None, NAN], pa.float32()),
            "exact": pa.array([0.26, NAN, -1.5], pa.float64()),
            "good": [True, False, None],
            "sub.keep": [True, False, None],
            "lang.language": ["en", None, "de"],
            "lang.reason": pa.array([None, "no_text", None]).dictionary_encode(),
        }
    )
)


def answers(where: str) -> list:
    (conjunct,) = conjuncts(where)
    return truth(conjunct, FRAME).to_list()


def test_top_level_conjuncts_in_order_through_parentheses_and_not_through_between_or_or():
    where = "(words > 2 AND (good)) AND words BETWEEN 1 AND 9 AND (zero = 0 OR good AND words = 1)"
    assert [c.text for c in conjuncts(where)] == [
        "words > 2",
        "good",
        "words BETWEEN 1 AND 9",
        "zero = 0 OR good AND words = 1",
    ]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (f"words IN ({', '.join(map(str, range(3, 1500)))})", [True, False, None]),
        (" OR ".join(f"words = {n}" for n in range(3, 336)), [True, False, None]),
        (" AND ".join(f"words <> {n}" for n in range(8, 341)), [True, True, None]),
        (f"{'(' * 25}words > 2{')' * 25}", [True, False, None]),
    ],
    ids=["values", "alternatives", "conditions", "brackets"],
)
def test_a_condition_may_be_long(where, expected):
    truths = [truth(conjunct, FRAME).to_list() for conjunct in conjuncts(where)]
    assert [None if None in row else all(row) for row in zip(*truths, strict=True)] == expected


def test_a_repeated_conjunct_counts_once_and_text_is_normalised():
    assert [c.text for c in conjuncts("words>2 and words  >  2 -- a remark")] == ["words > 2"]


def test_columns_in_order_of_appearance_qualified_as_written():
    (conjunct,) = conjuncts("CASE WHEN b > 1 THEN lang.language ELSE a END = 'en'")
    assert conjunct.columns == ("b", "lang.language", "a")


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("words > 2", [True, False, None]),
        ("words IS NULL", [False, False, True]),
        ("words IS NOT NULL", [True, True, False]),
        ("words NOT IN (2, 3)", [True, False, None]),
        ("words BETWEEN 1 AND 2", [False, True, None]),
        ("words NOT BETWEEN 1 AND 2", [True, False, None]),
        ("words <> 7", [False, True, None]),
        ("COALESCE(words, 0) < 1", [False, False, True]),
        ("NULLIF(words, 7) = 2", [None, True, None]),
        ("CASE WHEN words > 2 THEN TRUE ELSE FALSE END", [True, False, False]),
        ("words > 2 OR good", [True, False, None]),
        ("NOT good", [False, True, None]),
        ("TRUE", [True, True, True]),
        ("NULL", [None, None, None]),
        ("words IS DISTINCT FROM 7", [False, True, True]),
        ("lang.language = 'en'", [True, None, False]),
        ("sub.keep", [True, False, None]),
        ("lang.reason IS NULL", [True, False, True]),
        ("lang.reason LIKE 'no%'", [None, True, None]),
        ("text LIKE 'x%'", [True, None, False]),
        ("text ILIKE 'y'", [False, None, True]),
        ("text NOT LIKE 'x%'", [False, None, True]),
        ("text ~ '^x'", [True, None, False]),
        ("REGEXP_LIKE(text, '^x')", [True, None, False]),
        ("STARTS_WITH(text, 'x') AND TRUE AND TRUE", [True, None, False]),
        ("LOWER(text) = 'xx'", [True, None, False]),
        ("SUBSTR(text, 2, 1) = 'X'", [True, None, False]),
        ("text || 'z' = 'Yz'", [False, None, True]),
        ("ABS(exact) > 1", [False, None, True]),
        ("LEAST(words, 3) = 3", [True, False, True]),  # as in PostgreSQL: null is passed over
        ("words % 2 = 1", [True, False, None]),
        ("words / 2 = 3.5", [True, False, None]),  # no integer division
        ("ROUND(exact, 1) = 0.3", [True, None, False]),
        ("UPPER(TRIM(text)) = 'XX'", [True, None, False]),
        ("LEFT(text, 1) = RIGHT(text, 1)", [False, None, True]),
        ("REPLACE(text, 'x', 'y') = 'yX'", [True, None, False]),
        ("ENDS_WITH(text, 'X')", [True, None, False]),
        ("CONCAT(text, 'z') = 'z'", [False, True, False]),  # as in PostgreSQL: null is empty
        ("CEIL(exact) - FLOOR(exact) = SIGN(exact) * SIGN(exact)", [True, None, True]),
        ("POWER(words, 2) = 49", [True, False, None]),
        ("EXP(zero) = 1", [True, True, True]),
        ("IF(good, 1, 2) = 1", [True, False, False]),
    ],
)
def test_truth(where, expected):
    conjunct = conjuncts(where)[0]
    assert truth(conjunct, FRAME).to_list() == expected


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("score > -1", [True, None, None]),
        ("score IS NULL", [False, True, True]),
        ("COALESCE(score, 0.0) = 0.0", [False, True, True]),
        ("GREATEST(score, words) > 0", [True, True, None]),
        ("zero / zero > 1", [None, None, None]),
        ("ABS(zero / zero) IS NULL", [True, True, True]),
        ("SQRT(-words) > 0", [None, None, None]),
        ("LN(zero - 1) < 0", [None, None, None]),
        ("words / zero > 1", [True, True, None]),  # infinity is a number
        ("1 - ((zero / zero) + 1) > 0", [None, None, None]),
        ("POWER(zero / zero, 0) = 1", [True, True, True]),  # as IEEE has it
        ("POWER((zero / zero), 0) = 1", [None, None, None]),
        ("POWER((zero / zero) - 1, 0) = 1", [None, None, None]),
    ],
)
def test_nan_is_null_in_columns_and_out_of_arithmetic(where, expected):
    assert answers(where) == expected


def test_arithmetic_in_brackets_is_mended_once_and_not_in_each():
    """Or polars evaluates each twice as often as the one around it: 15 took 5 s."""
    said = []
    for depth in (4, 8):
        tree = conjuncts("words > " + "(1 - " * depth + "zero" + ")" * depth)[0].tree
        said.append(_polars_sql(tree, {}).count("NULLIF"))
    assert said == [1, 1]


def test_drawn_conditions_mean_what_they_mean_with_every_bracket_mended(monkeypatch):
    random = Random(0)
    drawn = [f"{arithmetic(random, 3)} > {arithmetic(random, 1)}" for _ in range(100)]
    once = [verdict(where) for where in drawn]
    with monkeypatch.context() as every_bracket:
        _sql._without_lists.cache_clear()
        every_bracket.setattr(_sql, "_is_mended_around", lambda node: _sql._may_be_nan(node.parent))
        assert [verdict(where) for where in drawn] == once
        _sql._without_lists.cache_clear()
    answered = [found for found in once if isinstance(found, list)]
    assert sum(None in found for found in answered) > 33
    assert sum(True in found for found in answered) > 16


def arithmetic(random: Random, depth: int) -> str:
    """Sums, powers, roots and casts, three in four in brackets."""
    if not depth:
        return random.choice(["words", "zero", "exact", "1", "2.5"])
    a, b = arithmetic(random, depth - 1), arithmetic(random, depth - 1)
    sums = [f"{a} {sign} {b}" for sign in "+-*/%"]
    calls = [f"POWER({a}, {b})", f"SQRT({a})", f"LN({a})", f"ABS({a})", f"COALESCE({a}, {b})"]
    text = random.choice([*sums, *calls, f"CAST({a} AS DOUBLE PRECISION)"])
    return f"({text})" if random.random() < 0.75 else text


def verdict(where: str) -> list[bool | None] | str:
    """The answers; in words, why there are none."""
    try:
        return truth(conjuncts(where)[0], FRAME).to_list()
    except StageError as error:
        return str(error)


CUT = np.float32(0.26)  # 0.25999999046..., below the literal 0.26 in float64


@pytest.mark.parametrize(
    "where",
    [
        "score >= 0.26",
        "0.26 <= score",
        "score = 0.26",
        "score BETWEEN 0.26 AND 1",
        "score IN (0.26, 0.5)",
        "NOT score < 0.26",
        "-score <= -0.26",
        "COALESCE(score, 0.0) >= 0.26",
        "GREATEST(score, 0.1) >= 0.26",
        "CASE WHEN words > 0 THEN score ELSE 0.0 END >= 0.26",
        "ROUND(score, 2) >= 0.26",
        "NULLIF(score, 0.26) IS NULL",
        "score * 0.5 >= 0.13",
    ],
)
def test_float32_meets_a_literal_in_float32(where):
    frame = as_frame(pa.table({"score": pa.array([CUT], pa.float32()), "words": [1]}))
    (conjunct,) = conjuncts(where)
    assert truth(conjunct, frame).to_list() == [True]


def test_float32_that_is_cast_or_meets_a_wider_number_is_compared_in_float64():
    assert answers("CAST(score AS DOUBLE) = 0.26") == [False, None, None]
    assert answers("score = exact") == [False, None, None]
    assert answers("score + zero = 0.26") == [False, None, None]  # NumPy: float32 + int64


def test_a_tie_rich_column_is_cut_as_numpy_cuts_it():
    score_N = (np.random.default_rng(0).integers(0, 50, 20_000) / 100).astype(np.float32)
    frame = as_frame(pa.table({"score": score_N}))
    for cut in (0.1, 0.26, 0.28, 0.3):
        (conjunct,) = conjuncts(f"score >= {cut}")
        kept = truth(conjunct, frame).sum()
        assert kept == (score_N >= np.float32(cut)).sum()
    assert (score_N.astype(float) >= 0.26).sum() < (score_N >= np.float32(0.26)).sum()


def test_integers_neither_wrap_nor_lose_their_sign():
    frame = as_frame(pa.table({"width": pa.array([70_000], pa.int32()), "a": ["x"], "b": ["xyz"]}))
    assert truth(conjuncts("width * width > 4000000000")[0], frame).to_list() == [True]
    assert truth(conjuncts("LENGTH(a) - LENGTH(b) < 0")[0], frame).to_list() == [True]
    unsigned = as_frame(pa.table({"u": pa.array([1, 2**64 - 1], pa.uint64())}))
    for where in ("u - 3 < 0", "-u >= -1", "ABS(u - 3) = 2", "GREATEST(u - 3, 0) = 0"):
        assert truth(conjuncts(where)[0], unsigned).to_list() == [True, False], where
    assert truth(conjuncts("u + 1 > 2")[0], unsigned).to_list() == [False, True]


def test_a_cast_that_fails_is_null_for_its_row_alone():
    frame = as_frame(pa.table({"punsafe": ["0.1", "broken", "nan", None, "0.9"]}))
    (conjunct,) = conjuncts("CAST(punsafe AS DOUBLE) < 0.5")
    assert truth(conjunct, frame).to_list() == [True, None, None, None, False]


def test_empty_frame_gives_an_empty_verdict():
    assert truth(conjuncts("words > 2")[0], FRAME.clear()).to_list() == []


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("SUM(words) > 1", r"`SUM\(words\)` asks other rows too: an aggregate"),
        ("words > AVG(words)", "an aggregate"),
        ("COUNT(*) > 1", "an aggregate"),
        ("MEDIAN(words) > 1", "an aggregate"),
        ("MAX(words) OVER () > 1", "an aggregate"),
        ("ROW_NUMBER() OVER (ORDER BY words) < 9", "an aggregate"),
        ("words IN (SELECT words FROM pool)", "asks other rows too: a subquery"),
        ("EXISTS (SELECT 1)", "a subquery"),
        ("words > (SELECT 1)", "a subquery"),
        ("SELECT 1", "a subquery"),
        ("RANDOM() < 0.5", r"does not know `RANDOM\(\)`\n(.|\n)*docs/select.md"),
        ("CURRENT_DATE > '2020-01-01'", "does not know `CURRENT_DATE"),
        ("PERPLEXITY(text) > 1", r"does not know `PERPLEXITY\(text\)`"),
        ("words = 1 good", "does not know `words = 1 AS good`"),
        ("words = ?", r"does not know `\?`"),
        ("*", r"does not know `\*`"),
        ("CASE words WHEN 1 THEN TRUE END", "write CASE WHEN words = … THEN …"),
        ("good IS NOT TRUE", r"`good IS TRUE` is null(.|\n)*write good IS NOT DISTINCT FROM TRUE"),
        ("a.b.c = 1", r"`a.b.c` names no column(.|\n)*write `column` or `stage.column`"),
        ("text LIKE lang", "`text LIKE lang` cannot be evaluated: .*pattern must be"),
        ("words >", "not SQL: something is missing beside `>`"),
        ("words IN 3", r"has no list(.|\n)*brackets"),
        ("words => 3", "`=>` cannot follow `words`"),
        ("words = 'en", "a quote is not closed"),
        ("(words = 1", "a bracket is not closed"),
        ("", "not one condition"),
        ("words = 1; good", "not one condition"),
    ],
)
def test_what_is_not_row_wise_sql_is_refused_and_named(where, says):
    with pytest.raises(RecipeError, match=says):
        conjuncts(where)


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("text > 1", "`text > 1` has no answer: (.|\n)*text is String"),
        ("words", "`words` has no answer: it is Int64"),
    ],
)
def test_a_comparison_of_unlike_types_stops_the_stage_and_names_the_types(where, says):
    with pytest.raises(StageError, match=says):
        answers(where)


def test_a_condition_is_put_into_polars_words_once_for_all_shards(monkeypatch):
    (rule,) = conjuncts("once_only + 1 > 3")
    put, original = [], _sql._polars_sql
    monkeypatch.setattr(_sql, "_polars_sql", lambda *of: put.append(of) or original(*of))
    for values in ([1, 2, 3], [3, None], []):
        frame = pl.DataFrame({"once_only": pl.Series(values, dtype=pl.Int64)})
        assert truth(rule, frame).to_list() == [None if v is None else v > 2 for v in values]
    assert len(put) == 1
    as_floats = pl.DataFrame({"once_only": [2.5]})  # of another type, whose NaN is mended
    assert truth(rule, as_floats).to_list() == [True]
    assert len(put) == 2
