"""Rows to be looked at: as many as the funnel counts, and the very ones that come first."""

import json
from dataclasses import replace

import numpy as np
import pytest

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.ledger.answer import as_json
from clipmill.pipeline.ledger.rows import top as few
from clipmill.pipeline.ledger.rows.query import query
from clipmill.pipeline.ledger.rows.top import Key, TopRows
from clipmill.pipeline.ledger.selection.show import HAS_VALUE, MOST, ShowQuery, show
from clipmill.pipeline.ledger.selection.survey import NEAREST, survey
from clipmill.pipeline.report.show_page import show_page
from clipmill.pipeline.run_folder.state import RunState
from tests import numbered, same_counts

pytestmark = pytest.mark.usefixtures("own_stages")


@pytest.fixture(scope="module")
def run(numbered_state) -> RunState:
    return numbered_state


def shown(state: RunState, stage: str, **wanted) -> list[int]:
    """Column `a` of the rows in their order."""
    (group,) = show(state, ShowQuery(stage=stage, columns=("a",), **wanted)).groups
    return [line.values["a"] for line in group.lines]


def test_its_counts_are_the_funnels(run):
    assert same_counts.shown(run) == 23


@pytest.mark.slow("asks of every stage and reason there is")
def test_its_counts_are_the_funnels_of_every_stage_over_a_generated_pool(every_stage):
    assert same_counts.shown(every_stage.state) > 80


def test_rows_of_a_union_have_the_pictures_that_it_took_along(every_stage):
    both = every_stage.stage_of("ingest.union").name
    answer = show(every_stage.state, ShowQuery(stage=both, most=9))
    _, said = show_page(every_stage.state, answer, "")
    assert said.startswith("9 rows")
    assert "no stage" not in said


def test_a_sample_is_spread_evenly_and_another_seed_is_another(run):
    every = [n for n in numbered.ROWS if n != 20]
    first = shown(run, "pool", most=6)
    assert first == shown(run, "pool", most=20)[:6]
    assert set(first) < {*every, None}
    assert max(n or 0 for n in first) > 12, "not the first rows"
    assert shown(run, "pool", most=6, seed=1) != first
    assert sorted(shown(run, "pool", most=20, where="a > 0")) == every


@pytest.mark.parametrize("is_descending", [False, True])
@pytest.mark.parametrize("most", [1, 3, 7, 19, 20])
def test_sorted_rows_are_the_first_of_all_and_those_without_a_value_last(most, is_descending, run):
    every = sorted([n for n in numbered.ROWS if n != 20], reverse=is_descending)
    assert (
        shown(run, "pool", sort="a", is_descending=is_descending, most=most)
        == ([*every, None][:most])
    )


def test_text_ids_and_places_are_sorted_too(run):
    texts = sorted(f"row {n}" for n in numbered.ROWS)
    assert shown(run, "pool", sort="text", most=3) == [int(text[4:]) for text in texts[:3]]
    assert shown(run, "pool", sort="position", most=3, where="shard = 1") == [8, 9, 10]
    by_uid = sorted(numbered.ROWS, key=numbered.uid)
    assert shown(run, "pool", sort="uid") == [None if n == 20 else n for n in by_uid]


def test_of_many_rows_only_the_few_are_held(run, monkeypatch):
    held = []

    class Watched(TopRows):
        def _first(self, frame):
            found = super()._first(frame)
            held.append(len(found))
            return found

    monkeypatch.setattr("clipmill.pipeline.ledger.selection.show.TopRows", Watched)
    assert shown(run, "pool", sort="a", is_descending=True, most=2) == [19, 18]
    assert held == [2, 2, 2]


def test_values_that_are_no_number_come_last_and_equal_ones_by_hash(own_stages, tmp_path):
    value = [1.5, np.nan, None, -np.inf, 1.5, np.inf, 1.5]
    rows = [
        {"url": f"http://b.test/{i}", "text": f"row {100 + i}", "a": 100 + i, "v": v}
        for i, v in enumerate(value)
    ]
    text = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "pool.jsonl").write_text(text)
    pool = "pool: {uses: ingest.url_list, path: none, extra: {a: int64, v: float64}, shard_rows: 3}"
    state = numbered.run(tmp_path, pool)
    first, *tied, infinite, nan, none = shown(state, "pool", sort="v")
    assert (first, infinite, {nan, none}) == (103, 105, {101, 102})
    assert set(tied) == {100, 104, 106}
    in_order = [n for n in shown(state, "pool") if n in tied]
    assert tied == in_order == [n for n in shown(state, "pool", sort="v", is_descending=True)[1:4]]


def test_near_a_cut_stand_the_nearest_of_both_sides(run):
    found = show(run, ShowQuery(stage="last", near_cut=True, most=4, columns=("a", "b")))
    by = {
        (it.cut.text, it.kept): (it.rows, [row.values["a"] for row in it.lines])
        for it in found.groups
    }
    assert by == {
        ("e <> 9", False): (1, [9]),
        ("e <> 9", True): (4, by["e <> 9", True][1]),
        ("b < 18", False): (2, [18, 19]),
        ("b < 18", True): (4, [17, 13]),
    }
    (cut,) = {it.cut for it in found.groups if it.cut.column == "b"}
    assert (cut.sign, cut.limit, cut.reasons) == ("<", 18, ("b < 18",))
    few = show(run, ShowQuery(stage="last", near_cut=True, where="a > 18"))
    assert [it.rows for it in few.groups if it.cut.column == "b"] == [1, 0]
    assert next(it.columns for it in few.groups if it.cut.column == "b") == ("b", "text")


def test_near_the_cut_of_the_best_stands_the_last_that_stays(own_stages, tmp_path):
    numbered.write_pool(tmp_path)
    stages = numbered.STAGES[: numbered.STAGES.index("one:")] + (
        "best: {uses: select.where, from: pool, where: a <> 3, top: {column: a, rows: 6}}\n"
        "some: {uses: select.sample, from: pool, rows: 5}\n"
        "words: {uses: annotate.caption, from: pool}\n"
        "tied: {uses: select.where, from: words, top: {column: caption_words, rows: 6}}\n"
        "one: {uses: probe.copy, from: pool, column: a, to: b}\n"
        "two: {uses: probe.copy, from: pool, column: a, to: b}\n"
        "read: {uses: select.where, from: [one, two], where: b > 18, read: {b: two.b}}\n"
    )
    state = numbered.run(tmp_path, stages)
    found = show(state, ShowQuery(stage="best", near_cut=True, most=4, columns=("a",)))
    *_, went, stay = found.groups
    assert went.cut.text == "top.rows = 6: from 14"
    assert [line.values["a"] for line in went.lines] == [13, 12]
    assert [line.values["a"] for line in stay.lines] == [14, 15]
    went, stay = show(state, ShowQuery(stage="some", near_cut=True, most=40)).groups
    assert (went.rows, stay.rows) == (15, 5)
    ranks = [line.values["sample_rank"] for line in (*reversed(stay.lines), *went.lines)]
    assert ranks == sorted(ranks), "from the least rank to the greatest"
    went, stay = show(state, ShowQuery(stage="tied", near_cut=True)).groups
    assert (went.rows, stay.rows) == (14, 6), "all have as many words"
    (cut,) = (cut for cut in survey(state, "tied").cuts if cut.cut.is_size)
    assert (cut.beyond, len(cut.dropped), len(cut.kept)) == (0, NEAREST, 6)
    went, stay = show(state, ShowQuery(stage="read", near_cut=True)).groups
    assert (went.cut.column, went.rows, stay.rows) == ("two.b", 18, 1)


def test_near_a_cut_on_lists_stands_the_item_that_decides(tmp_path):
    text = "\n".join(
        json.dumps({"url": f"http://b.test/{i}", "text": f"{i}", "a": [1, i, 30 - i] if i else []})
        for i in range(11)
    )
    (tmp_path / "pool.jsonl").write_text(text)
    state = numbered.run(
        tmp_path,
        'pool: {uses: ingest.url_list, path: none, extra: {a: "list<item: int64>"}}\n'
        'high: {uses: select.where, from: pool, where: "COALESCE(max(a), 0) < 26"}\n'
        "some: {uses: select.where, from: pool, where: any(a > 27)}\n",
    )

    def seen(stage):
        groups = show(
            state, ShowQuery(stage=stage, near_cut=True, most=4, columns=("text",))
        ).groups
        return [(g.rows, [int(line.values["text"]) for line in g.lines]) for g in groups]

    assert seen("high") == [(4, [4, 3]), (6, [5, 6])]
    assert seen("some") == [(8, [3, 4]), (2, [2, 1])]


def test_columns_are_of_any_stage_and_those_chosen_tell_what_decided(run):
    (group,) = show(run, ShowQuery(stage="last", dropped="b < 18")).groups
    assert group.columns == ("b", "e", "text")
    (group,) = show(run, ShowQuery(stage="one", dropped=True)).groups
    assert group.columns == ("reason", "url", "text")
    assert {line.values["reason"] for line in group.lines} == {"unlucky", "no_number"}
    wanted = ShowQuery(stage="pool", columns=("late.reason", "last.keep", "shard", "uid"), most=20)
    (group,) = show(run, wanted).groups
    at = {line.uid: line for line in group.lines}
    assert at[numbered.uid(4)].values["late.reason"] == "unlucky"
    assert at[numbered.uid(1)].values["late.reason"] == "not_selected"
    assert at[numbered.uid(9)].values == {
        **{"late.reason": None, "last.keep": False, "shard": 1, "uid": numbered.uid(9)}
    }
    assert (at[numbered.uid(9)].shard, at[numbered.uid(9)].position) == (1, 1)


def test_a_reason_may_be_given_in_the_funnels_words(run):
    found = show(run, ShowQuery(stage="last", dropped="dropped by an earlier select"))
    assert (found.dropped, found.groups[0].rows) == ("dropped_before", 9)


def test_an_unfinished_run_shows_what_is_there_and_says_so(numbered_copy):
    state = numbered_copy
    state.stages["one"].folder.delete(state.stages["one"].scan.records[1][0].name)
    state = RunState(state.plan, state.run)
    found = show(state, ShowQuery(stage="one", columns=("a",)))
    assert found.groups[0].rows == 13
    assert [(it.stage, it.shards, it.total) for it in found.unfinished] == [("one", 2, 3)]
    last = show(state, ShowQuery(stage="last", near_cut=True))
    assert all(group.rows == 0 for group in last.groups)
    json.dumps(as_json(last), allow_nan=False)


def test_lists_and_bytes_are_shown_short(every_stage):
    stage = every_stage.stage_of("embed.clip").name
    found = show(every_stage.state, ShowQuery(stage=stage, columns=("image_embedding", "image")))
    values = [line.values for line in found.groups[0].lines]
    assert any("… 64 values]" in str(value["image_embedding"]) for value in values)
    assert any(str(value["image"]).endswith(" bytes") for value in values)
    json.dumps(as_json(found), allow_nan=False)


WRONG = [
    ({"stage": "lats"}, "no stage 'lats'", "did you mean"),
    ({"stage": "uids"}, "has no rows", "name a stage"),
    ({"sort": "text_"}, "no stage writes column 'text_'", "did you mean 'text'"),
    ({"columns": ("ur",)}, "no stage writes column 'ur'", "did you mean 'url'"),
    ({"where": "a >"}, "not SQL", "mend it"),
    ({"where": "bb > 1"}, "no stage writes column 'bb'", ""),
    ({"dropped": "e <> 8"}, "drops no row for 'e <> 8'", "did you mean 'e <> 9'"),
    ({"stage": "one", "dropped": "b < 18"}, "'one' drops no row for 'b < 18'", "reason of 'last'"),
    ({"most": 0}, "0 rows to look at", "show 1 to"),
    ({"most": MOST + 1}, "rows to look at", "export"),
    ({"is_descending": True}, "--desc without --sort", "add --sort"),
    ({"near_cut": True, "sort": "a"}, "--near-cut with --sort", "leave one out"),
    ({"near_cut": True, "dropped": True}, "--near-cut with --dropped", "leave one out"),
    ({"stage": "late", "near_cut": True}, "'late' has no threshold", "first, last"),
]


@pytest.mark.parametrize(("wanted", "found", "do"), WRONG)
def test_what_is_wrong_is_said_with_what_to_do(wanted, found, do, run):
    with pytest.raises(RecipeError) as error:
        show(run, replace(ShowQuery(stage="last"), **wanted))
    assert found in error.value.args[0]
    assert do in error.value.args[2]


def test_a_column_of_lists_has_no_order(every_stage):
    stage = every_stage.stage_of("embed.clip").name
    with pytest.raises(RecipeError, match="has no order"):
        show(every_stage.state, ShowQuery(stage=stage, sort="image_embedding"))


def test_thousands_of_values_in_a_condition_are_asked_at_once(run):
    uids = ", ".join(f"'{n:032x}'" for n in range(1_200))  # more than Python calls
    where = f"uid IN ({uids}, '{numbered.uid(7)}')"
    assert shown(run, "pool", where=where) == [7]


def test_a_million_values_in_a_condition_are_refused_at_once(run):
    uids = "', '".join(["0" * 32] * 1_000_000)
    with pytest.raises(RecipeError, match="a condition of 36,000,") as error:
        show(run, ShowQuery(stage="pool", where=f"uid IN ('{uids}')"))
    assert "select.uid_list" in error.value.args[2]


def test_rows_are_ranked_shard_by_shard_as_all_at_once(run):
    asked = query(run, "pool", ["a"])
    for most in (1, 4, 20):
        found = TopRows(Key("a", near=9.5), most, 0).add_all(asked, HAS_VALUE)
        at = few.values_at(asked, found.places, ["a"])
        apart = [abs(at[place]["a"] - 9.5) for place in found.places]
        assert apart == sorted(abs(n - 9.5) for n in numbered.ROWS if n != 20)[:most]
        assert found.rows == 19
