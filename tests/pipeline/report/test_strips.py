"""Strips of rows side by side: duplicates behind their keeper, leaked rows by task."""

import json
from dataclasses import replace

import pytest

from clipmill.pipeline.ledger.findings.duplicates import GROUPS, MEMBERS, duplicates
from clipmill.pipeline.ledger.findings.leaks import leaks
from clipmill.pipeline.ledger.rows.near import Cut
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.report.build import report
from clipmill.pipeline.report.strips import duplicate_strips, leak_strips
from clipmill.pipeline.run_folder.state import RunState
from tests import numbered
from tests.drawn import HOSTILE, ROWS, caption
from tests.parsed import Page

pytestmark = pytest.mark.usefixtures("own_stages")


def test_equal_captions_are_shown_as_texts_beside_their_pictures(state):
    same, _ = duplicates(state)
    hostile, words = duplicate_strips(state, same)
    rows = [caption(row) for row in range(ROWS)]
    assert [hostile["rows"], words["rows"]] == [rows.count(HOSTILE), rows.count("word")]
    assert len(hostile["samples"]) == MEMBERS + 1
    assert hostile["more"] == rows.count(HOSTILE) - MEMBERS - 1
    assert [sample["texts"] for sample in hostile["samples"]] == [{"text": HOSTILE}] * 10
    assert any(sample["picture"] for sample in hostile["samples"])


def test_near_pictures_stand_behind_their_keeper_from_the_nearest_to_the_farthest(state, html):
    _, near = duplicates(state)
    assert (near.stage, near.limits, near.cut) == ("near", (0, 10), None)
    strips = duplicate_strips(state, near)
    assert 0 < len(strips) <= GROUPS
    for strip in strips:
        keeper, *members = strip["samples"]
        joined_at = [member["values"]["joined_at"] for member in members]
        assert joined_at == sorted(joined_at)
        assert keeper["values"] == {"joined_at": None}
        assert strip["marks"] == ["keeper", *[""] * len(members)]
        assert all(sample["texts"] == {} for sample in strip["samples"])
    page = Page(html)
    assert "Duplicates up to where the stage looked, joined_at 0 to 10" in page.text
    assert page.text.count("keeper") >= len(strips)


def test_members_past_a_selects_cut_are_marked_and_a_select_of_the_plan_is_enough(state):
    apart = {"uses": "select.where", "from": "near", "where": "NOT joined_at <= 0"}
    recipe = state.plan.recipe
    wider = replace(recipe, stages={**recipe.stages, "apart": apart})
    state = RunState(make_plan(wider), state.run)
    _, near = duplicates(state)
    strips = duplicate_strips(state, near)
    assert near.cut == Cut("joined_at", "<=", 0, "apart")
    assert 0 < near.reached < near.duplicates
    for strip in strips:
        for mark, sample in zip(strip["marks"][1:], strip["samples"][1:], strict=True):
            assert mark == ("past the cut" if sample["values"]["joined_at"] > 0 else "")
    assert {mark for strip in strips for mark in strip["marks"]} > {"", "past the cut"}


def test_leaked_rows_are_shown_by_task_and_counted_on_the_page(state, html):
    (found,) = leaks(state)
    of = {strip["task"]: strip for strip in leak_strips(state, found)}
    assert [(s["texts"]["text"], s["values"]) for s in of["numbers"]["samples"]] == [
        ("drawing number 7", {"eval_overlap": 1.0, "eval_key": "n/7"}),
        ("drawing number 18", {"eval_overlap": 1.0, "eval_key": "n/18"}),
    ]
    tales = [row for row in range(ROWS) if caption(row) == HOSTILE]
    page = Page(html)
    assert f"leaks: {len(tales) + 2} rows at eval_overlap >= 1" in page.text
    assert "samples compared too short nearest to it eval_overlap ≥ 1 ≥ 0.1" in page.text
    assert "numbers 3 1 2 2 2" in page.text


def test_a_run_without_pictures_shows_texts(every_stage):
    (wording,) = (of for of in duplicates(every_stage.state) if of.stage == "wording")
    strips = duplicate_strips(every_stage.state, wording)
    samples = [sample for strip in strips for sample in strip["samples"]]
    assert samples
    assert all(sample["texts"] and sample["picture"] is None for sample in samples)


def test_how_many_near_texts_a_stage_missed_is_told(tmp_path):
    texts = [f"a long caption about the same old thing, number {row // 2}" for row in range(8)]
    rows = [json.dumps({"url": str(row), "text": text}) for row, text in enumerate(texts)]
    (tmp_path / "pool.jsonl").write_text("\n".join(rows))
    state = numbered.run(
        tmp_path,
        "pool: {uses: ingest.url_list, path: none}\n"
        "wording: {uses: dedup.minhash, from: pool, min_jaccard: 0.5}",
    )
    (found,) = duplicates(state)
    drawn = found.recall["with_a_near_one"]
    assert drawn > 0
    assert (
        f"of {drawn} drawn texts that have a near one, it joined {drawn}"
        in Page(report(state)).text
    )
