"""Groups of duplicates and leaked rows, against loops over the rows of the run of every stage."""

import dataclasses
import json
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from metadata.schema import Column
from pipeline.ledger.near import Cut, Pool, cut_of, evenly, spread
from pipeline.plan import make_plan
from pipeline.report.build import report
from pipeline.report.duplicates import GROUPS, MEMBERS, SIZES, duplicates, led_to, sizes
from pipeline.report.leaks import LIMITS, SHOWN, leaks, limits
from pipeline.state import RunState
from tests import numbered
from tests.drawn import HOSTILE, ROWS, caption
from tests.parsed import Page


def uids(*names: int | None) -> pa.ChunkedArray:
    halves = len(names) // 2
    found = [None if name is None else name.to_bytes(16, "big") for name in names]
    return pa.chunked_array([found[:halves], found[halves:]], pa.binary(16))


def column(name: str, **says: Any) -> Column:
    return Column(name, pa.float32(), "any", "Of a test.", **says)


def led(uid: list[int], keeper: list[int | None], is_duplicate: list[bool] | None = None) -> list:
    duplicate_N = np.array(is_duplicate or [name is not None for name in keeper], bool)
    return led_to(uids(*uid), uids(*keeper), duplicate_N).tolist()


def test_each_row_is_led_to_the_row_that_stays_along_a_chain_of_any_length():
    assert led([7, 8, 9], [None, None, None]) == [0, 1, 2]
    assert led([7, 8, 9, 5], [9, 7, None, 9]) == [2, 2, 2, 2]
    assert led([7, 8, 9, 5], [9, 7, None, 9], [False, True, False, True]) == [0, 0, 2, 2]
    chain = list(range(1000))
    assert led(chain, [*chain[1:], None]) == [999] * 1000
    assert led([], []) == []


def test_any_forest_is_led_as_by_walking():
    rng = np.random.default_rng(0)
    for rows in rng.integers(1, 40, 200):
        name = rng.permutation(rows)
        up = [int(rng.integers(0, i)) if i and rng.random() < 0.7 else None for i in range(rows)]
        walked = []
        for row in range(rows):
            while (parent := up[row]) is not None:
                row = parent
            walked.append(row)
        keeper = [None if i is None else int(name[i]) for i in up]
        assert led(name.tolist(), keeper) == walked


def test_of_a_uid_that_repeats_the_row_that_stays_is_meant_and_a_circle_ends():
    assert led([7, 7, 8], [7, None, 7]) == [1, 1, 1]
    assert led([7], [7]) == [0]
    assert led([7, 8], [3, None]) == [0, 1]  # who is named is not there
    assert set(led([1, 2, 3], [2, 3, 1])) <= {0, 1, 2}


def test_an_all_identical_pool_is_one_group():
    first_N = led_to(uids(*range(5000)), uids(None, *[0] * 4999), np.arange(5000) > 0)
    assert sizes(np.bincount(first_N, minlength=5000)) == [0, 0, 0, 0, 1]


def test_groups_are_counted_by_class_of_size():
    assert SIZES == (2, 3, 6, 11, 101)
    assert sizes(np.array([1, 2, 2, 3, 5, 6, 10, 11, 100, 101, 0])) == [2, 2, 2, 2, 1]


def test_the_shown_are_spread_from_the_nearest_to_the_farthest():
    bits = pa.chunked_array([np.arange(100, dtype=np.int32)])
    rows = np.array([90, 10, 50, 30, 70])
    distance, likeness = column("bits", better="high"), column("likeness", better="low")
    assert spread(rows, bits, distance, 3).tolist() == [10, 50, 90]
    assert spread(rows, bits, distance, 9).tolist() == [10, 30, 50, 70, 90]
    assert spread(rows, bits, likeness, 2).tolist() == [90, 10]
    assert evenly(rows, 2).tolist() == [90, 70]
    assert spread(rows[:0], bits, distance, 3).tolist() == []


def test_a_threshold_is_compared_in_the_columns_own_type():
    cosine = pa.chunked_array([pa.array([0.95, 0.949, None, 1], pa.float32())])
    assert Cut("c", ">=", 0.95).reached(cosine).tolist() == [True, False, False, True]
    assert Cut("c", ">", 0.95).reached(cosine).tolist() == [False, False, False, True]
    bits = pa.chunked_array([pa.array([0, 2, None, 3], pa.int32())])
    assert Cut("b", "<=", 2).reached(bits).tolist() == [True, True, False, False]
    assert Cut("b", "<", 2).reached(bits).tolist() == [True, False, False, False]


def test_places_are_counted_shard_by_shard():
    pool = Pool(pa.table({}), (0, 4, 5), np.array([0, 3, 3]))
    assert pool.places([0, 2, 3, 9]) == [(0, 0), (0, 2), (5, 0), (5, 6)]


def test_a_cut_is_the_near_side_of_a_selects_threshold(state):
    far, alike = column("min_side", better="high"), column("aspect_ratio", better="low")
    assert cut_of(state, "look", far) == Cut("min_side", "<", 30, "subset")
    assert cut_of(state, "look", alike) == Cut("aspect_ratio", ">", 3, "subset")
    ranked = column("luma_std", better="low")
    assert cut_of(state, "look", ranked) is None  # the number of `top` is none of the column
    assert cut_of(state, "look", replace(ranked, alike=0.5)) == Cut("luma_std", ">=", 0.5)
    assert cut_of(state, "look", replace(ranked, better="high", alike=0.5)).sign == "<="


def test_leaks_are_counted_at_the_strictest_limits_up_to_one_past_the_cut():
    told = {"at": [0, 1, 2, 3], "tasks": {"a": {"samples": 5, "rows": [1, 2, 3, 9]}}}
    found = limits(told, Cut("d", "<=", 1), {"a": 2, "b": 7})
    assert found["at"] == [0, 1, 2]
    assert found["tasks"] == [
        {"task": "a", "samples": 5, "too_short": 0, "nearest": 2, "within": [1, 2, 3]}
    ]
    told = {"at": [0.5, 0.9, 1.0], "tasks": {"a": {"samples": 5, "rows": [9, 4, 1]}}}
    found = limits(told, Cut("c", ">=", 0.9), {})
    assert (found["at"], found["tasks"][0]["within"]) == ([1.0, 0.9, 0.5], [1, 4, 9])
    many = {"at": list(range(20)), "tasks": {"a": {"samples": 5, "rows": list(range(20))}}}
    assert limits(many, Cut("d", "<=", 99), {})["at"] == list(range(20))[-LIMITS:]


def test_a_limit_that_adds_no_row_is_left_out_but_for_the_last_at_the_cut():
    def at(number: float, **rows: list[int]) -> list[int]:
        tasks = {task: {"samples": 5, "rows": within} for task, within in rows.items()}
        return limits({"at": [0, 1, 2, 3, 4], "tasks": tasks}, Cut("d", "<=", number), {})["at"]

    even = [1, 1, 4, 4, 6]
    assert at(2, a=even) == [0, 2, 4]
    assert at(3, a=even) == [0, 2, 3, 4]
    assert at(0, a=even) == [0, 2]
    assert at(2, a=even, b=[0, 1, 1, 1, 1]) == [0, 1, 2, 4]
    assert at(2, a=[0] * 5) == [0, 2, 4]
    assert at(-1, a=even) == [0]


def test_a_pools_own_column_of_that_name_is_passed_over(tmp_path):
    (tmp_path / "pool.jsonl").write_text('{"url": "a", "text": "b", "duplicate_of": "yes"}')
    extra = "extra: {duplicate_of: string}"
    state = numbered.run(tmp_path, f'pool: {{uses: ingest.url_list, path: "", {extra}}}')
    assert duplicates(state) == []


# In the drawn run: equal captions, near pictures


def test_equal_captions_are_shown_as_texts_beside_their_pictures(state):
    same, _ = duplicates(state)
    groups = Counter(map(caption, range(ROWS)))
    assert same["sizes"] == [0, 0, 1, 1, 0]
    assert same["duplicates"] == sum(groups.values()) - len(groups)
    assert [strip["rows"] for strip in same["strips"]] == [groups[HOSTILE], groups["word"]]
    hostile = same["strips"][0]
    assert len(hostile["samples"]) == MEMBERS + 1
    assert hostile["more"] == groups[HOSTILE] - MEMBERS - 1
    assert [sample["texts"] for sample in hostile["samples"]] == [{"text": HOSTILE}] * 10
    assert any(sample["picture"] for sample in hostile["samples"])


def test_near_pictures_stand_behind_their_keeper_from_the_nearest_to_the_farthest(state):
    _, near = duplicates(state)
    assert (near["stage"], near["limits"], near["cut"]) == ("near", (0, 10), None)
    assert near["strips"]
    assert len(near["strips"]) <= GROUPS
    for strip in near["strips"]:
        keeper, *members = strip["samples"]
        joined_at = [member["values"]["joined_at"] for member in members]
        assert joined_at == sorted(joined_at)
        assert keeper["values"] == {"joined_at": None}
        assert strip["marks"] == ["keeper", *[""] * len(members)]
        assert all(sample["texts"] == {} for sample in strip["samples"])
    page = Page(report(state))
    assert "Duplicates up to where the stage looked, joined_at 0 to 10" in page.text
    assert page.text.count("keeper") >= len(near["strips"])


def test_members_past_a_selects_cut_are_marked_and_a_select_of_the_plan_is_enough(state):
    apart = {"uses": "select.where", "from": "near", "where": "NOT joined_at <= 0"}
    recipe = state.plan.recipe
    wider = dataclasses.replace(recipe, stages={**recipe.stages, "apart": apart})
    _, near = duplicates(RunState(make_plan(wider), state.run))
    assert near["cut"] == Cut("joined_at", "<=", 0, "apart")
    assert 0 < near["reached"] < near["duplicates"]
    for strip in near["strips"]:
        for mark, sample in zip(strip["marks"][1:], strip["samples"][1:], strict=True):
            assert mark == ("past the cut" if sample["values"]["joined_at"] > 0 else "")
    assert {mark for strip in near["strips"] for mark in strip["marks"]} > {"", "past the cut"}


def test_leaked_rows_stand_under_the_task_of_their_nearest_sample(state):
    (found,) = leaks(state)
    assert found["cut"] == Cut("eval_overlap", ">=", 1)  # no select has one
    tales = [row for row in range(ROWS) if caption(row) == HOSTILE]
    assert found["reached"] == len(tales) + 2
    assert found["at"] == [1.0, 0.1]  # no row has a part of a caption, so no limit adds one
    assert [list(task.values()) for task in found["tasks"]] == [
        ["tales", 1, 0, len(tales), [len(tales)] * 2],
        ["numbers", 3, 1, 2, [2, 2]],
    ]
    of = {strip["task"]: strip for strip in found["strips"]}
    assert {task: (strip["rows"], strip["more"]) for task, strip in of.items()} == {
        "tales": (len(tales), len(tales) - SHOWN),
        "numbers": (2, 0),
    }
    assert [(s["texts"]["text"], s["values"]) for s in of["numbers"]["samples"]] == [
        ("drawing number 7", {"eval_overlap": 1.0, "eval_key": "n/7"}),
        ("drawing number 18", {"eval_overlap": 1.0, "eval_key": "n/18"}),
    ]
    page = Page(report(state))
    assert f"leaks: {len(tales) + 2} rows at eval_overlap >= 1" in page.text
    assert "samples compared too short nearest to it eval_overlap ≥ 1 ≥ 0.1" in page.text
    assert "numbers 3 1 2 2 2" in page.text


# In the run of every stage


def in_words(every_stage, name: str) -> list[dict]:
    return every_stage.values(every_stage.plan.stages[name])


def test_every_stages_groups_are_those_of_a_walk_over_its_rows(every_stage):
    found = {one["stage"]: one for one in duplicates(every_stage.state)}
    assert {"same", "alike", "wording", "meaning"} <= found.keys()
    for name, one in found.items():
        rows = in_words(every_stage, name)
        up = {
            row["uid"]: row.get("duplicate_of") or row["earlier_uid"]
            for row in rows
            if row.get("duplicate_of") or (row.get("earlier_cosine") or -1) >= 0.95
        }
        size: Counter[str] = Counter()
        for row in rows:
            uid = row["uid"]
            while uid in up:
                uid = up[uid]
            size[uid] += 1
        groups = sorted((rows for rows in size.values() if rows > 1), reverse=True)
        assert (one["rows"], one["duplicates"]) == (len(rows), len(up)), name
        assert sum(one["sizes"]) == len(groups), name
        assert [strip["rows"] for strip in one["strips"]] == groups[:GROUPS], name
        for strip in one["strips"]:
            (keeper, *members) = [sample["uid"] for sample in strip["samples"]]
            assert keeper not in up
            assert all(member in up for member in members)


def test_a_run_without_pictures_shows_texts(every_stage):
    (wording,) = (one for one in duplicates(every_stage.state) if one["stage"] == "wording")
    samples = [sample for strip in wording["strips"] for sample in strip["samples"]]
    assert samples
    assert all(sample["texts"] and sample["picture"] is None for sample in samples)


def test_how_many_near_texts_a_stage_missed_is_told(tmp_path):
    texts = [f"a long caption about the same old thing, number {row // 2}" for row in range(8)]
    rows = [json.dumps({"url": str(row), "text": text}) for row, text in enumerate(texts)]
    (tmp_path / "pool.jsonl").write_text("\n".join(rows))
    state = numbered.run(
        tmp_path,
        "pool: {uses: ingest.url_list, path: ''}\n"
        "wording: {uses: dedup.minhash, from: pool, min_jaccard: 0.5}",
    )
    (found,) = duplicates(state)
    drawn = found["recall"]["with_a_near_one"]
    assert drawn > 0
    assert (
        f"of {drawn} drawn texts that have a near one, it joined {drawn}"
        in Page(report(state)).text
    )
