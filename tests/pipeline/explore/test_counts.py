"""What the explorer counts: the same as `funnel` and `sweep`, and as a loop over all rows."""

import contextlib
import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.explore.columns import Codes, Numbers
from clipmill.pipeline.explore.counts import binned
from clipmill.pipeline.explore.masks import Masks
from clipmill.pipeline.explore.questions import OneOf, Range
from clipmill.pipeline.explore.session import Session
from clipmill.pipeline.ledger.rows.stored import stored
from clipmill.pipeline.ledger.selection.funnel import funnel
from clipmill.pipeline.ledger.selection.sweep import sweep
from tests import numbered

RUNS = ["numbers", "drawings", "clusters"]


@pytest.fixture(params=RUNS)
def each(request):
    return request.getfixturevalue(request.param)


def values(asker, column: str) -> list:
    """A stored column of all rows."""
    stage, _, name = column.partition(".")
    state = asker.session.state
    root = asker.session.facts()["roots"][0]["root"]
    shards = stored(state, root, {"it": (stage, name)})
    return [v for i in range(len(shards)) for v in shards.table(i)["it"].to_pylist()]


def test_causes_are_those_of_the_funnel_in_its_order(each):
    for end in funnel(each.session.state).ends:
        kept, *causes = each("query", end=end.stage)["causes"]
        assert (kept["stage"], kept["rows"]) == ("", end.kept)
        counted = [(cause["stage"], cause["reason"], cause["rows"]) for cause in causes]
        assert counted == [(loss.stage, loss.reason, loss.rows) for loss in end.causes]


def test_a_press_on_a_cause_shows_its_rows_and_the_other_causes_keep_their_counts(each):
    for end in funnel(each.session.state).ends:
        for loss in end.causes:
            cause = {"is": "lost for", "end": end.stage, "causes": [[loss.stage, loss.reason]]}
            answer = each("query", end=end.stage, filters=[cause])
            assert answer["count"] == loss.rows
            assert [it["left"] for it in answer["causes"]] == [
                it["rows"] for it in answer["causes"]
            ]


def test_reasons_of_every_stage_are_those_of_the_funnel(each):
    for stage in funnel(each.session.state).stages:
        (name,) = [f"{stage.stage}.reason"]
        counted = each("query", categories=[name])["categories"][name]["values"]
        known = {None: stage.fine, "not_selected": stage.not_selected}
        for kind in (stage.failed, stage.upstream, stage.dropped):
            for reason, rows in kind.items():
                known[reason] = known.get(reason, 0) + rows
        assert {it["value"]: it["rows"] for it in counted} == {r: n for r, n in known.items() if n}
        for reason, rows in known.items():
            one = {"is": "one of", "column": name, "values": [reason]}
            assert each("query", filters=[one])["count"] == rows


def test_a_threshold_put_elsewhere_keeps_what_sweep_says(each):
    ranges = {
        "c > 3": "c=1:12:1",
        "min_side >= 30": "min_side=10:70:10",
        "aspect_ratio <= 3": "aspect_ratio=1:8:0.5",
        "top.fraction = 0.8": "top.fraction=0.1:1:0.1",
        "top.fraction = 0.5": "top.fraction=0.1:1:0.1",
        "caption_words >= 2": "caption_words=1:12:1",
    }
    tried = 0
    for cut in each.session.facts()["roots"][0]["thresholds"]:
        if vary := ranges.get(cut["text"]):
            for point in sweep(each.session.state, cut["stage"], vary).points:
                threshold = each.threshold(cut["text"], point.value)
                moved = each("query", threshold=threshold)["moved"]
                assert [moved[name] for name in ("kept", "won", "lost")] == [
                    *(point.kept, point.won, point.lost)
                ]
                tried += 1
    assert tried >= 10


def test_rows_won_and_lost_stand_side_by_side(numbers):
    parts = numbers("query", threshold=numbers.threshold("c > 3", 10), beside=True)["parts"]
    assert parts["lost"]["page"] == [row - 1 for row in (4, 6, 8, 9)]
    assert {name: part["count"] for name, part in parts.items()} == {
        **{"kept": 7, "dropped": 13, "won": 0, "lost": 4}
    }


def test_kept_and_dropped_rows_stand_side_by_side(numbers):
    parts = numbers("query", end="last", beside=True)["parts"]
    assert parts["kept"]["page"] == [row - 1 for row in numbered.KEPT]
    assert parts["dropped"]["count"] == 16


def test_masks_are_those_of_a_loop(drawings):
    side, words = values(drawings, "look.min_side"), values(drawings, "caption.caption_words")
    text, uid = values(drawings, "pool.text"), values(drawings, "pool.uid")
    luma = values(drawings, "look.luma_std")
    least = sorted(it for it in luma if it is not None)[7]
    begin = uid[17].hex()
    cases = [
        ({"is": "range", "column": "look.min_side", "low": 30, "high": None},
         [it is not None and it >= 30 for it in side]),
        ({"is": "range", "column": "look.luma_std", "low": None, "high": least},
         [it is not None and np.float32(it) <= np.float32(least) for it in luma]),
        ({"is": "one of", "column": "caption.caption_words", "values": [1, 3]},
         [it in (1, 3) for it in words]),
        ({"is": "one of", "column": "look.min_side", "values": [None, 64]},
         [it in (None, 64) for it in side]),
        ({"is": "one of", "column": "look.min_side", "values": [64, 64.5, 2**31, -1e30, 1e308]},
         [it == 64 for it in side]),
        ({"is": "one of", "column": "look.luma_std", "values": [least, 1e308]},
         [it == least for it in luma]),
        ({"is": "one of", "column": "worth.keep", "values": ["true"]},
         values(drawings, "worth.keep")),
        ({"is": "says", "column": "pool.text", "words": "NUMBER 3"},
         ["number 3" in it.lower() for it in text]),
        ({"is": "says", "column": "pool.text", "words": ".*"}, [False] * len(text)),
        ({"is": "uid", "begins": begin[:3].upper()},
         [it.hex().startswith(begin[:3]) for it in uid]),
        ({"is": "uid", "begins": begin}, [it.hex() == begin for it in uid]),
    ]  # fmt: skip
    for filter, known in cases:
        assert drawings.page(filter) == np.flatnonzero(known).tolist(), filter
    both = np.logical_and(cases[0][1], cases[5][1])
    assert drawings.page(cases[0][0], cases[5][0]) == np.flatnonzero(both).tolist()


def test_a_histogram_leaves_the_filter_on_its_own_column_out(drawings):
    side = "look.min_side"
    narrow = {"is": "range", "column": side, "low": 50, "high": 70}
    number = {"is": "says", "column": "pool.text", "words": "number"}
    answer = drawings("query", filters=[narrow, number], histograms=[side], categories=[])
    alone = drawings("query", filters=[number], histograms=[side])
    assert answer["histograms"][side]["left"] == alone["histograms"][side]["left"]
    assert sum(answer["histograms"][side]["all"]) == answer["rows"] == 60
    assert sum(alone["histograms"][side]["left"]) == alone["count"] > answer["count"] > 0


def test_columns_that_are_held_are_given_as_they_are_stored(every_stage, tmp_path):
    """So that a threshold's verdicts are made of the same values, NaN and nulls among them."""
    kinds = set()
    state = every_stage.state
    for columns in Session(str(state.run.path), tmp_path / "run.yaml").roots.values():
        for column in columns.stored.values():
            with contextlib.suppress(RecipeError):  # of too many values: it is not held
                columns.codes(column.id)
            found = columns.as_stored(column.where)
            if found is None:
                assert column.kind != "number"
                continue
            shards = stored(state, columns.root, {"it": column.where})
            known = pa.concat_tables(map(shards.table, range(len(shards))))["it"]
            assert found.type == known.type
            assert repr(found.to_pylist()) == repr(known.to_pylist())
            kinds.add((column.kind, known.null_count > 0))
    assert kinds >= {("number", False), ("number", True), ("text", True), ("category", False)}


def test_nan_and_null_are_told_apart_in_a_column_that_is_held():
    values = np.array([1.5, 0, np.nan, -np.inf], np.float32)
    held = Numbers(values, np.array([True, False, False, True]))  # a null is stored as 0
    assert str(held.as_arrow().to_pylist()) == "[1.5, None, nan, -inf]"


def test_a_range_past_float32_or_past_whole_floats_is_exact():
    for dtype, values, low, high, within_range in (
        (np.float32, [1, np.inf, -np.inf], -1e39, 1e39, [True, True, True]),
        (np.float32, [3e38, 1], 1e39, None, [False, False]),
        (np.int64, [2**53, 2**53 + 1], None, 2.0**53, [True, False]),
        (np.int64, [-(2**53), -(2**53) - 1, 0], -(2.0**53), 0.5, [True, False, True]),
        (np.uint64, [2**64 - 1, 0], 1e19, 1e39, [True, False]),
        (np.uint8, [0, 255], 0.5, 1e39, [False, True]),
    ):
        held = Numbers(np.array(values, dtype), np.ones(len(values), bool))
        masks = Masks(SimpleNamespace(numbers=lambda name, held=held: held))
        assert masks.of(Range("pool.x", low, high)).tolist() == within_range, (dtype, values)


def test_rows_without_a_value_are_others_than_those_of_the_word_none():
    codes = Codes(np.array([0, 1, -1, 2], np.int32), ["None", "a", "a\0"])
    column = SimpleNamespace(kind="text")
    masks = Masks(SimpleNamespace(column=lambda name: column, codes=lambda name: codes))
    for value, row in (("None", 0), ("a", 1), (None, 2), ("a\0", 3)):
        assert np.flatnonzero(masks.of(OneOf("pool.text", [value]))).tolist() == [row]


def test_bins_are_found_as_by_a_search_on_values_that_stand_on_their_edges():
    random = np.random.default_rng(0)
    edges = np.linspace(-1, 1, 40)
    values = np.concatenate([random.choice(edges, 500), random.normal(size=500), [np.nan, np.inf]])
    for dtype in (np.float64, np.float32, np.float16):
        column = Numbers(values.astype(dtype), ~np.isnan(values))
        found = binned(column, "score")
        place = np.searchsorted(found.edges[1:-1], column.values.astype(float), side="right")
        known = np.where(np.isfinite(values), place, len(found.edges) - 1)
        np.testing.assert_array_equal(found.bin, known)
        assert found.span == (column.values[:-2].min(), column.values[:-2].max())
    assert binned(Numbers(np.zeros(3), np.zeros(3, bool)), "none").span == (0.0, 0.0)


def test_bins_hold_what_lies_between_their_edges(drawings):
    name = "caption.caption_words"
    found = drawings("query", histograms=[name])["histograms"][name]
    known, _ = np.histogram(values(drawings, name), found["edges"])
    assert found["all"][:-1] == known.tolist()
    assert found["all"][-1] == 0


@pytest.mark.parametrize("descending", [False, True])
def test_rows_are_sorted_with_those_without_a_value_last_and_equal_ones_as_they_stand(
    descending, drawings
):
    for name in ("look.min_side", "look.reason", "caption.caption_words"):
        value = values(drawings, name)
        there = [row for row in range(60) if value[row] is not None]
        known = sorted(there, key=lambda row: value[row], reverse=descending)
        known += [row for row in range(60) if value[row] is None]
        sort = {"column": name, "descending": descending}
        assert drawings.page(sort=sort) == known
        some = drawings("query", sort=sort, offset=10, limit=5)["parts"]["rows"]["page"]
        assert some == known[10:15]


@pytest.mark.parametrize(
    ("filter", "said"),
    [
        ({"is": "range", "column": "look.nosuch", "low": 1}, "no column 'look.nosuch'"),
        ({"is": "range", "column": "pool.text", "low": 1}, "holds no numbers"),
        ({"is": "one of", "column": "emb.image_embedding", "values": [1]}, "shown, and not asked"),
        ({"is": "says", "column": "look.min_side", "words": "a"}, "holds no text"),
        ({"is": "uid", "begins": "xyz"}, "'xyz' begins no uid"),
        ({"is": "lost for", "end": "pool", "causes": []}, "no complete select stage"),
        ({"is": "one of", "column": "look.min_side", "values": [*range(10_001)]}, "10,001 values"),
        ({"is": "nonsense"}, "no question"),
    ],
)
def test_what_cannot_be_asked_is_said_in_a_sentence(filter, said, clusters):
    with pytest.raises(RecipeError, match=said):
        clusters("query", filters=[filter])


def test_a_column_of_too_many_values_says_so_beside_the_others(drawings, monkeypatch):
    monkeypatch.setattr("clipmill.pipeline.explore.columns.MOST_NAMES", 5)
    answer = drawings("query", categories=["pool.url", "look.reason"])["categories"]
    assert answer["pool.url"]["values"] == []
    assert "'pool.url' has more than 5 values: search" in answer["pool.url"]["refused"]
    assert "refused" not in answer["look.reason"]


def test_clusters_are_filtered_by_their_number_and_mapped(clusters):
    cluster = values(clusters, "clusters.cluster_id")
    one = {"is": "one of", "column": "clusters.cluster_id", "values": [3]}
    assert clusters.page(one) == [row for row in range(60) if cluster[row] == 3]
    (found,) = clusters("clusters")
    assert sum(it["rows"] for it in found["drawn"]) == found["rows"]


def test_a_row_is_told_with_its_values_and_its_verdict(drawings):
    columns = ["look.min_side", "hash.phash"]
    (row,) = drawings("rows", rows=[14], columns=columns, end="subset")
    uid = values(drawings, "pool.uid")[14].hex()
    assert (row["uid"], row["text"]) == (uid, "drawing number 14")
    side, phash = (values(drawings, name)[14] for name in columns)
    assert row["values"] == {"look.min_side": side, "hash.phash": str(phash)}  # of 64 bits
    is_kept = values(drawings, "subset.keep")[14]
    assert (row["verdict"] == ["", ""]) == is_kept
    assert drawings("why", uid=row["uid"])["ends"][-1]["kept"] == is_kept
    assert drawings("rows", rows=[60, 10**9]) == []


def test_a_row_without_a_picture_says_why(drawings, numbers):
    (row,) = numbers("rows", rows=[3])
    assert (row["picture"], row["no_picture"]) == (False, "no stage of these rows stores pictures")
    (row,) = drawings("rows", rows=[3])
    assert (row["picture"], row["no_picture"]) == (True, None)
    broken = drawings("rows", rows=[6])[0]  # half of a PNG
    assert broken["picture"] or "pool:" in broken["no_picture"]


@pytest.mark.slow("asks of every column there is")
def test_every_column_of_every_stage_is_counted_or_refused_in_words(every_stage, tmp_path):
    session = Session(str(every_stage.state.run.path), tmp_path / "run.yaml")
    rows = {stage.stage: stage for stage in funnel(session.state).stages}
    kinds = set()
    for root in session.facts()["roots"]:
        for column in root["columns"]:
            asked = {"number": "histograms", "other": "histograms"}.get(
                column["kind"], "categories"
            )
            query = {"root": root["root"], asked: [column["id"]], "limit": 3}
            kinds.add(column["kind"])
            if column["kind"] == "other":
                with pytest.raises(RecipeError, match="it is shown, and not asked"):
                    session.query(json.dumps(query).encode())
            else:
                answer = session.query(json.dumps(query).encode())[asked][column["id"]]
                counted = answer.get("all") or [it["rows"] for it in answer["values"]]
                others = answer.get("others", {"values": 0, "rows": 0})
                assert sum(counted) + others["rows"] == root["rows"]
                assert others["values"] == 0 or len(counted) == 200
            page = {"root": root["root"], "rows": [0, 1], "columns": [column["id"]]}
            json.dumps(session.rows(json.dumps(page).encode()), allow_nan=False)
        for end in root["ends"]:
            query = {"root": root["root"], "end": end}
            kept, *causes = session.query(json.dumps(query).encode())["causes"]
            assert kept["rows"] + sum(it["rows"] for it in causes) == rows[end].rows
    assert kinds == {"number", "category", "text", "other"}
