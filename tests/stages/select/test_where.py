"""select.where: verdicts and their reasons, the cut against sorting, DataComp's n + 1."""

import itertools
import math
import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.stages.select import _cut
from clipmill.stages.select.where import Top, Where

NAN = float("nan")
FLOAT32 = pa.float32()


def table(uid: list | None = None, **columns) -> pa.Table:
    arrays = {name.replace("__", "."): pa.array(values) for name, values in columns.items()}
    rows = len(next(iter(arrays.values())))
    ids = [number.to_bytes(16, "big") for number in uid or range(rows)]
    return pa.table({"uid": pa.array(ids, pa.binary(16)), **arrays})


def scores(values: list, dtype=FLOAT32, uid: list | None = None) -> pa.Table:
    return table(uid, clip_score=pa.array(values, dtype), passes=[True] * len(values))


@pytest.fixture
def verdicts(memory_shards, memory_context):
    """(keep, reason) of every row of the tables, each a shard."""

    def run(stage: Where, *tables: pa.Table) -> list[tuple]:
        ctx = memory_context()
        stage.run(Inputs(rows=memory_shards(*tables)), ctx)
        stored = pa.concat_tables(ctx.stored)
        assert set(stored.schema.names) == {"uid", "shard", "position", "keep", "reason"}
        assert stored["keep"].null_count == 0
        reasons = stored["reason"].to_pylist()
        assert set(reasons) <= {None, *stage.reasons}
        return list(zip(stored["keep"].to_pylist(), reasons, strict=True))

    return run


@pytest.fixture
def kept(verdicts):
    def run(stage: Where, *tables: pa.Table) -> list[int]:
        return [row for row, (keep, _) in enumerate(verdicts(stage, *tables)) if keep]

    return run


# The condition


def test_the_reason_is_the_first_false_conjunct(verdicts):
    stage = Where(where="language = 'en' AND words > 2 AND (chars > 5)")
    rows = table(
        language=["en", "de", "en", "de", "en"], words=[3, 3, 2, 2, 3], chars=[6, 6, 6, 5, 5]
    )
    assert verdicts(stage, rows) == [
        (True, None),
        (False, "language = 'en'"),
        (False, "words > 2"),
        (False, "language = 'en'"),
        (False, "chars > 5"),
    ]


def test_a_null_condition_is_undefined_by_the_first_null_column_of_its_first_null_conjunct(
    verdicts,
):
    stage = Where(where="a + b > 1 AND c > 1")
    rows = table(
        a=[1.0, None, 1.0, NAN, 1.0, None],
        b=[1.0, None, None, 1.0, 1.0, 1.0],
        c=[2.0, 2.0, None, None, NAN, 0.0],
    )
    assert verdicts(stage, rows) == [
        (True, None),
        (False, "undefined:a"),
        (False, "undefined:b"),
        (False, "undefined:a"),
        (False, "undefined:c"),
        (False, "c > 1"),  # null AND false is false
    ]


def test_a_conjunct_that_is_not_null_decides_by_itself(verdicts):
    stage = Where(where="a IS NULL AND COALESCE(b, 1.0) > 0 AND (a > 1 OR c > 1)")
    assert verdicts(stage, table(a=[NAN, None, 1.0], b=[NAN, None, 1.0], c=[2, 2, 2])) == [
        (True, None),
        (True, None),
        (False, "a IS NULL"),
    ]


def test_a_null_condition_though_every_column_has_a_value_is_undefined(verdicts):
    stage = Where(where="NULLIF(words, 0) > 1")
    assert verdicts(stage, table(words=[2, 0])) == [
        (True, None),
        (False, "undefined"),
    ]


def test_reads_are_the_columns_as_written_and_bound_by_that_name(verdicts):
    stage = Where(
        where="lang.language = 'en' AND lang.reason IS NULL AND words > 2",
        top=Top(column="score.clip_score", rows=1),
    )
    assert stage.reads == ("lang.language", "lang.reason", "words", "score.clip_score")
    rows = table(
        lang__language=["en", "en", "en"],
        lang__reason=pa.array([None, None, "no_text"]).dictionary_encode(),
        words=[3, 3, 3],
        score__clip_score=[0.1, 0.2, 0.3],
    )
    assert verdicts(stage, rows) == [
        (False, "top:score.clip_score"),
        (True, None),
        (False, "lang.reason IS NULL"),
    ]


def test_reasons_are_known_from_the_settings():
    stage = Where(where="a > 1 AND b + a < 2", top=Top(column="c", fraction=0.5))
    assert stage.reasons == (
        "dropped_before",
        "undefined:image_bytes",
        "a > 1",
        "b + a < 2",
        "undefined:a",
        "undefined:b",
        "undefined",
        "undefined:c",
        "top:c",
    )


def test_a_row_dropped_before_and_a_row_without_image_stay_out_whatever_the_condition(verdicts):
    rows = table(
        keep=[True, False, None, True, False],
        image_bytes=[10, 10, 10, None, None],
        words=[3, 3, 3, 3, 1],
    )
    assert verdicts(Where(where="words > 2"), rows) == [
        (True, None),
        (False, "dropped_before"),
        (False, "dropped_before"),
        (False, "undefined:image_bytes"),
        (False, "dropped_before"),
    ]


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("uid = '{1}'", [1]),
        ("uid IN ('{1}', '{3}')", [1, 3]),
        ("uid LIKE '%1'", [1]),
        ("uid <> '{0}' AND clip_score > 0.1", [1, 2]),
        ("duplicate_of = '{0}'", [1]),
        ("duplicate_of IS NOT NULL", [1]),
        ("uid > duplicate_of", [1]),
    ],
)
def test_a_uid_is_compared_by_its_hex_digits(kept, where, rows):
    uids = [f"{number:032x}" for number in range(4)]
    named = pa.array([None, bytes(16), None, None], pa.binary(16))
    pool = scores([0.2, 0.9, 0.2, None]).append_column("duplicate_of", named)
    assert kept(Where(where=where.format(*uids)), pool) == rows


def test_float32_is_cut_in_float32(kept):
    rows = scores([0.25, 0.26, 0.27])
    assert kept(Where(where="clip_score >= 0.26"), rows) == [1, 2]


def test_a_selection_that_keeps_nothing_and_shards_without_rows(verdicts):
    empty = table(words=pa.array([], pa.int32()))
    rows = table(words=pa.array([1, 2], pa.int32()))
    stage = Where(where="words > 2", top=Top(column="words", fraction=0.5))
    assert verdicts(stage, empty, rows, empty) == [(False, "words > 2")] * 2


# The best


def test_datacomp_keeps_one_row_more_than_the_exact_count(kept):
    rows = scores([n / 10 for n in range(10)])
    top = {"column": "clip_score", "fraction": 0.3}
    assert kept(Where(top=Top(**top)), rows) == [7, 8, 9]
    assert kept(Where(top=Top(**top, datacomp_compat=True)), rows) == [6, 7, 8, 9]


def test_datacomp_keeps_every_tie_of_its_cut_and_the_exact_count_the_smallest_uids(kept):
    rows = scores([0.5, 0.9, 0.5, 0.5, 0.1, 0.5], uid=[3, 0, 2, 5, 1, 4])
    top = {"column": "clip_score", "fraction": 0.5}
    assert kept(Where(top=Top(**top)), rows) == [0, 1, 2]
    assert kept(Where(top=Top(**top, datacomp_compat=True)), rows) == [0, 1, 2, 3, 5]


def test_a_datacomp_cut_on_nan_keeps_nothing_and_fraction_one_keeps_all(verdicts):
    rows = scores([0.1, NAN, 0.3, None])
    nothing = Top(column="clip_score", fraction=0.5, datacomp_compat=True)
    assert verdicts(Where(top=nothing), rows) == [
        (False, "top:clip_score"),
        (False, "undefined:clip_score"),
        (False, "top:clip_score"),
        (False, "undefined:clip_score"),
    ]
    everything = Top(column="clip_score", fraction=1.0, datacomp_compat=True)
    assert [keep for keep, _ in verdicts(Where(top=everything), rows)] == [True, False] * 2


def test_pool_fixes_the_cut_on_all_rows_and_passing_on_those_that_pass(verdicts):
    rows = table(clip_score=[0.9, 0.8, 0.7, 0.6], language=["de", "en", "en", "en"])
    by_pool = Where(
        where="language = 'en'", top=Top(column="clip_score", fraction=0.5, over="pool")
    )
    assert verdicts(by_pool, rows) == [
        (False, "language = 'en'"),
        (True, None),
        (False, "top:clip_score"),
        (False, "top:clip_score"),
    ]
    passing = Where(where="language = 'en'", top=Top(column="clip_score", rows=2))
    assert [keep for keep, _ in verdicts(passing, rows)] == [False, True, True, False]


def test_a_share_counts_rows_without_a_value(kept):
    rows = scores([0.1, 0.2, 0.3, NAN, None, NAN])
    assert kept(Where(top=Top(column="clip_score", fraction=0.5)), rows) == [0, 1, 2]
    assert kept(Where(top=Top(column="clip_score", fraction=0.34)), rows) == [1, 2]


def sorted_by_hand(rows: list[tuple], top: Top) -> set[int]:
    """Rows that stay, by Python's sort; a row is (value, uid, passes)."""
    pool = [i for i, row in enumerate(rows) if top.over == "pool" or row[2]]
    ranked = [i for i in pool if rows[i][0] is not None and not math.isnan(rows[i][0])]
    passing = {i for i in ranked if rows[i][2]}
    nth = top.rows or int(len(pool) * top.fraction)
    if not top.datacomp_compat:
        best = sorted(ranked, key=lambda i: (-rows[i][0], rows[i][1], i))
        return passing & set(best[:nth])
    if nth == len(pool):
        return passing
    value_N = np.array([rows[i][0] if i in ranked else np.nan for i in pool], float)
    cut = -np.sort(-value_N)[nth]  # NaN sorts last, and is reached by nothing
    return {i for i in passing if rows[i][0] >= cut}


VALUE = st.one_of(
    st.sampled_from([0.0, -0.0, 0.5, -0.5, math.inf, -math.inf, NAN, None, 1e-45, 0.26]),
    st.floats(width=32),
)
UID = st.one_of(st.integers(0, 3), st.integers(0, 2**128 - 1))
TOP = st.one_of(
    st.builds(
        Top,
        column=st.just("clip_score"),
        fraction=st.floats(0, 1, exclude_min=True),
        over=st.sampled_from(["passing", "pool"]),
        datacomp_compat=st.booleans(),
    ),
    st.builds(
        Top,
        column=st.just("clip_score"),
        rows=st.integers(1, 12),
        over=st.sampled_from(["passing", "pool"]),
    ),
)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40
)
@given(
    rows=st.lists(st.tuples(VALUE, UID, st.booleans()), min_size=1, max_size=12),
    top=TOP,
    dtype=st.sampled_from([pa.float32(), pa.float64()]),
    cuts=st.sets(st.integers(0, 12)),
    few=st.sampled_from([_cut.FEW, 3, 0]),
)
def test_the_cut_is_that_of_sorting_whatever_the_shards(kept, rows, top, dtype, cuts, few):
    value, uid, passes = map(list, zip(*rows, strict=True))
    whole = table(uid, clip_score=pa.array(value, dtype), passes=passes)
    edges = [0, *sorted(cuts & set(range(len(rows)))), len(rows)]
    shards = [whole[a:b] for a, b in itertools.pairwise(edges)]
    stage = Where(where="passes", top=top)
    expected = sorted_by_hand(rows, top)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_cut, "FEW", few)
        assert set(kept(stage, *shards)) == expected
        assert set(kept(stage, whole)) == expected


@pytest.mark.parametrize(
    "dtype", [pa.float16(), pa.int8(), pa.int32(), pa.int64(), pa.uint64()], ids=str
)
def test_any_number_ranks(kept, dtype):
    kind = np.float16 if dtype == pa.float16() else None
    rows = scores(np.array([3, 0, 7, 7, 2], kind), dtype, uid=[0, 1, 3, 2, 4])
    assert kept(Where(top=Top(column="clip_score", rows=1)), rows) == [3]
    assert kept(Where(top=Top(column="clip_score", rows=3)), rows) == [0, 2, 3]


def test_ties_of_many_shards_are_counted_together(kept):
    shards = [scores([0.5] * 200, uid=[*range(start, start + 200)]) for start in (0, 200, 400)]
    best = kept(Where(top=Top(column="clip_score", rows=450)), *shards)
    assert best == list(range(450))  # 200 fit in a byte, their sum does not


def test_text_cannot_rank():
    with pytest.raises(StageError, match="column 'language' holds string"):
        Where(top=Top(column="language", rows=1)).check({"language": pa.string()})


# Settings


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "has no rule"),
        ({"where": "AVG(words) > 1"}, "an aggregate"),
    ],
)
def test_settings_that_select_nothing_knowable_are_refused(settings, says):
    with pytest.raises(RecipeError, match=says):
        Where(**settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "neither fraction nor rows"),
        ({"fraction": 0.3, "rows": 3}, "fraction and rows"),
        ({"rows": 3, "datacomp_compat": True}, "a rule about `fraction`"),
    ],
)
def test_a_top_that_cannot_be_is_refused(settings, says):
    with pytest.raises(RecipeError, match=says):
        Top(column="clip_score", **settings)


def test_settings_travel_to_workers():
    stage = Where(where="words > 2", top=Top(column="clip_score", rows=1))
    assert pickle.loads(pickle.dumps(stage)) == stage


def test_a_comparison_inside_not_is_the_opposite_one_which_a_kept_row_meets():
    where = "NOT a < 0.3 AND NOT (b > 1 OR NOT c <= 2) AND d NOT BETWEEN 3 AND 4 AND e NOT IN (5)"
    assert [(cut.text, cut.sign) for cut in Where(where=where).thresholds()] == [
        ("a >= 0.3", ">="),
        ("b <= 1", "<="),
        ("c <= 2", "<="),
        ("d < 3", "<"),
        ("d > 4", ">"),
        ("e <> 5", "<>"),
    ]
