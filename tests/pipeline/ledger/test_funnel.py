"""The funnel: known answers on numbered rows, and causes that add up whatever happened."""

import json
import re
import threading
from dataclasses import replace
from functools import cache
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.passes import NOT_SELECTED
from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.ledger.rows import ahead as of_shards
from clipmill.pipeline.ledger.rows import partitions
from clipmill.pipeline.ledger.rows.columns import line_of
from clipmill.pipeline.ledger.selection import funnel as of_funnel
from clipmill.pipeline.ledger.selection.causes import BEFORE, UNDEFINED, trace
from clipmill.pipeline.ledger.selection.funnel import funnel
from clipmill.pipeline.ledger.selection.reasons import ShardReasons
from clipmill.pipeline.ledger.work import work
from clipmill.pipeline.run_folder.live import as_json, live_run
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.terminal import percent
from clipmill.pipeline.verbs.funnel import text
from tests import numbered

pytestmark = pytest.mark.usefixtures("own_stages")


@pytest.fixture(scope="module")
def found(numbered_state):
    return funnel(numbered_state)


def counts(found, stage: str) -> tuple:
    (it,) = (s for s in found.stages if s.stage == stage)
    return it.fine, it.failed, it.upstream, it.dropped, it.not_selected


@pytest.mark.parametrize(
    ("stage", "known"),
    [
        ("pool", (20, {}, {}, {}, 0)),
        ("one", (16, {"unlucky": 3, "no_number": 1}, {}, {}, 0)),
        ("two", (14, {"unlucky": 2}, {"no_number": 4}, {}, 0)),
        ("first", (11, {}, {}, {"c > 3": 3, "undefined:c": 6}, 0)),
        ("late", (7, {"unlucky": 4}, {}, {}, 9)),
        ("last", (4, {}, {}, {BEFORE: 9, "undefined:e": 4, "e <> 9": 1, "b < 18": 2}, 0)),
    ],
)
def test_each_stage_counts_its_rows_by_reason(stage, known, found):
    assert counts(found, stage) == known


def test_rows_are_fine_failed_upstream_dropped_or_not_selected_at_every_stage(found):
    for stage in found.stages:
        kinds = (stage.failed, stage.upstream, stage.dropped)
        lost = sum(sum(kind.values()) for kind in kinds)
        assert stage.fine + stage.not_selected + lost == stage.rows == len(numbered.ROWS)


def test_each_lost_row_is_counted_once_at_the_stage_that_lost_it_first(found):
    (end,) = found.ends
    assert (end.stage, end.rows, end.kept) == ("last", 20, 4)
    causes = {(cause.stage, cause.reason): cause.rows for cause in end.causes}
    assert causes == {cause: len(rows) for cause, rows in numbered.CAUSES.items()}


def test_causes_stand_in_the_order_of_the_stages_and_of_the_rules_of_a_select(found):
    (end,) = found.ends
    assert [(cause.stage, cause.reason) for cause in end.causes] == list(numbered.CAUSES)


def test_a_cause_names_one_of_its_rows(found):
    (end,) = found.ends
    for cause in end.causes:
        rows = numbered.CAUSES[cause.stage, cause.reason]
        assert cause.example in map(numbered.uid, rows)


def test_the_page_says_the_same(found):
    page = text(found, {"pool"})
    assert "        20 100.0%  rows in the pool\n        -3  15.0%  one: unlucky  (17 left" in page
    assert "         4  20.0%  kept by 'last'" in page
    assert re.search(r"uids: 3 files, 1\.\d kB in ", page)
    assert "not complete" not in page


def test_rounding_makes_no_share_none_or_all(found):
    end = replace(found.ends[0], rows=10_000, kept=9_999, causes=found.ends[0].causes[:1])
    end = replace(end, causes=(replace(end.causes[0], rows=1),))
    page = text(replace(found, ends=(end,)), {"pool"})
    assert "        -1  <0.1%  " in page
    assert "     9,999 >99.9%  " in page
    assert [*map(percent, (0, 0.0005, 0.9994, 1))] == ["0.0%", "0.1%", "99.9%", "100.0%"]


def test_the_page_has_plain_words_and_the_shares_of_each_stage(found):
    lines = [re.sub(" +", " ", line).strip() for line in text(found, {"pool"}).splitlines()]
    start = lines.index("last select.where 20 rows 4 fine")
    assert lines[start + 1 : start + 5] == [
        "dropped 9 45.0% dropped by an earlier select",
        "dropped 1 5.0% e <> 9",
        "dropped 2 10.0% b < 18",
        "no input 4 20.0% e has no value",
    ]
    assert "no input 4 20.0% no_number" in lines, "of `two`, for want of a value of `one`"


def test_rows_that_a_later_stage_failed_are_not_kept_whatever_stage_is_last(numbered_copy):
    found = funnel(numbered.without(numbered_copy, "last", "uids"))
    (end,) = found.ends
    assert (end.stage, end.kept) == ("first", 7)
    assert (end.causes[-1].stage, end.causes[-1].reason, end.causes[-1].rows) == (
        "late",
        "unlucky",
        4,
    )
    page = text(found, {"pool"})
    assert "-4  20.0%  late: unlucky  (7 left; why " in page
    assert "         7  35.0%  left of what 'first' keeps" in page


def test_rows_that_a_select_dropped_have_not_failed_at_the_stages_after_it(engine):
    ran = engine.run(
        """
  bright: {uses: select.where, from: numbers, where: number < 20}
  same:   {uses: dedup.exact, from: bright, columns: [number]}
"""
    )
    answer = funnel(ran.outcome.state)
    assert counts(answer, "same") == (20, {}, {}, {BEFORE: 11}, 0)
    line = next(line for line in text(answer, {"pool"}).splitlines() if "earlier select" in line)
    assert " ".join(line.split()) == "dropped 11 35.5% dropped by an earlier select"
    assert live_run(ran.outcome.state, "complete").stages["same"].kinds == {"dropped before": 11}


def test_an_unfinished_run_says_so_at_the_top(numbered_copy):
    lost = numbered_copy.stages["late"]
    lost.folder.delete(lost.scan.records[1][0].name)
    found = funnel(RunState(numbered_copy.plan, numbered_copy.run))
    assert [(it.stage, it.shards, it.total) for it in found.unfinished] == [
        ("late", 2, 3),
        ("last", 0, 3),
        ("uids", 0, None),
    ]
    assert text(found, {"pool"}).splitlines()[1] == (
        "not complete: late has 2 of 3 shards; 2 stages are not done; what follows is of the others"
    )


def test_a_select_stage_that_no_other_builds_on_is_an_end_of_its_own(tmp_path):
    numbered.write_pool(tmp_path)
    more = numbered.STAGES + "other: {uses: select.where, from: one, where: b > 18}\n"
    ends = {end.stage: end for end in funnel(numbered.run(tmp_path, more)).ends}
    assert ends.keys() == {"last", "other"}
    assert ends["other"].kept == 1
    causes = {(c.stage, c.reason): c.rows for c in ends["other"].causes}
    assert causes == {("one", "unlucky"): 3, ("one", "no_number"): 1, ("other", "b > 18"): 15}


def test_a_reason_of_a_row_whose_values_are_there_is_no_cause(tmp_path):
    numbered.write_pool(tmp_path)
    rows = (tmp_path / "pool.jsonl").read_text().splitlines()
    for start, size in ((0, "1"), (1, '"large"')):
        rows[start::2] = [row.replace('"a":', f'"size": {size}, "a":') for row in rows[start::2]]
    (tmp_path / "pool.jsonl").write_text("\n".join(rows))
    sized = numbered.STAGES.replace("a: int64}", "a: int64, size: int64}")
    found = funnel(numbered.run(tmp_path, sized))
    assert counts(found, "pool") == (10, {"bad_value": 10}, {}, {}, 0)
    assert counts(found, "one") == (16, {"unlucky": 3}, {"no_number": 1}, {}, 0)
    (end,) = found.ends
    causes = {(cause.stage, cause.reason): cause.rows for cause in end.causes}
    known = {cause: len(rows) for cause, rows in numbered.CAUSES.items()}
    assert known.pop(("one", "no_number")) == causes.pop(("pool", "bad_value")) == 1
    assert causes == known


def test_what_is_not_complete_is_not_counted_yet(numbered_copy, tmp_path):
    with pytest.raises(RecipeError, match="no stage is complete"):
        funnel(RunState(numbered_copy.plan, Storage(str(tmp_path / "none"))))
    found = funnel(numbered.without(numbered_copy, "late", "last", "uids"))
    assert [stage.stage for stage in found.stages] == ["pool", "one", "two", "first"]
    assert [end.stage for end in found.ends] == ["first"]


# Every row one cause, whatever the reasons


@cache
def plan():
    from pathlib import Path

    return numbered.plan_of(Path("nowhere"))


def reasons_of(rows: int):
    """Reasons of every stage that could be: an undefined value need not have a cause."""
    codes = {
        "pool": [None, "no_url"],
        "one": [None, None, "unlucky", "no_number"],
        "two": [None, None, "unlucky"],
        "first": [None, None, "c > 3", f"{UNDEFINED}c"],
        "late": [None, "unlucky", NOT_SELECTED],
        "last": [None, "e <> 9", f"{UNDEFINED}e", f"{UNDEFINED}b", "undefined", BEFORE],
    }
    stages = {
        name: st.lists(st.sampled_from(c), min_size=rows, max_size=rows)
        for name, c in codes.items()
    }
    return st.fixed_dictionaries(stages)


def first_cause(reasons: dict[str, str | None], end: str) -> tuple[str, str]:
    """The rule in words, for one row: back through the selects, then the earliest that failed."""
    code = reasons[end]
    if code == BEFORE:
        return first_cause(reasons, "first")
    lines = {"c": ["pool", "one", "two"], "e": ["pool", "late"], "b": ["pool", "one"]}
    for stage in lines.get(code.removeprefix(UNDEFINED), []) if code.startswith(UNDEFINED) else []:
        if reasons[stage] is not None:
            return stage, reasons[stage]
    return end, code


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 12).flatmap(reasons_of))
def test_each_row_that_is_lost_has_one_cause_the_first(columns):
    # Whoever was dropped before was dropped by the select before.
    for i, code in enumerate(columns["first"]):
        if columns["last"][i] == BEFORE and code is None:
            columns["last"][i] = "e <> 9"
    arrays = {name: pa.array(codes, pa.string()) for name, codes in columns.items()}
    lost = pc.is_valid(arrays["last"])
    found = list(trace(plan(), "last", arrays, lost, lambda *_: None))
    masks = np.array([np.asarray(rows) for *_, rows in found], bool).reshape(len(found), len(lost))
    assert (masks.sum(axis=0) == np.asarray(lost)).all()
    for i in np.flatnonzero(lost):
        row = {name: codes[i] for name, codes in columns.items()}
        (which,) = np.flatnonzero(masks[:, i])
        assert found[which][:2] == first_cause(row, "last")


# What is counted from the records


def opened(monkeypatch) -> list[str]:
    """The Parquet files that are opened from here on: stage and name."""
    names: list[str] = []
    open_file = Storage.open

    def noted(folder: Storage, name: str):
        names.append(f"{folder}/{name}".rpartition("stages/")[2])
        return open_file(folder, name)

    monkeypatch.setattr(Storage, "open", noted)
    return names


def test_stages_that_part_and_meet_again_are_walked_once():
    walked = []

    class Walked(SimpleNamespace):
        @property
        def sources(self):
            walked.append(self.name)
            return self.parents

    stages = {"m0": Walked(name="m0", parents=())}
    for i in range(9):
        for name in (f"a{i}", f"b{i}"):
            stages[name] = Walked(name=name, parents=(f"m{i}",))
        stages[f"m{i + 1}"] = Walked(name=f"m{i + 1}", parents=(f"a{i}", f"b{i}"))
    line = line_of(SimpleNamespace(stages=stages), "m9", attrgetter("sources"))
    assert line == {*stages}
    assert sorted(walked) == sorted(stages)


def test_whether_a_stage_has_reasons_is_told_without_its_file(numbered_state, monkeypatch):
    reasons = ShardReasons(numbered_state, "pool", 0)
    names = opened(monkeypatch)
    assert ("one" in reasons, "none" in reasons, list(names)) == (True, False, [])


def test_rows_and_reasons_are_counted_from_the_records_and_open_no_file_of_their_stage(
    numbered_copy, monkeypatch
):
    state = numbered.without(numbered_copy, "two", "first", "late", "last", "uids")
    names = opened(monkeypatch)
    found = funnel(state)
    assert counts(found, "one") == (16, {"unlucky": 3, "no_number": 1}, {}, {}, 0)
    assert {name.partition("-")[0] for name in names} == {"pool"}, "its uids, no more"


def test_several_shards_are_read_at_once(numbered_state, monkeypatch):
    state = numbered_state
    expected, meeting, met = funnel(state), threading.Barrier(2), []
    open_file = Storage.open

    def together(folder: Storage, name: str):
        if not met:
            meeting.wait(20)  # for a reader of another shard
            met.append(name)
        return open_file(folder, name)

    monkeypatch.setattr(Storage, "open", together)
    assert funnel(state) == expected
    assert met


@pytest.mark.slow("two processes start")
def test_of_many_shards_processes_count_the_same(tmp_path, monkeypatch):
    numbered.write_pool(tmp_path, [{"url": f"http://b.test/{i}", "text": "t"} for i in range(30)])
    state = numbered.run(tmp_path)
    expected, asked = funnel(state), []
    stream = LocalExecutor.stream

    def counted(executor, steps, items):
        asked.append(executor.workers)
        return stream(executor, steps, items)

    monkeypatch.setattr(LocalExecutor, "stream", counted)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(of_shards, "MANY", len(state.stages["pool"].shards) + 1)
    for together in (2, 1):
        monkeypatch.setattr(of_shards, "PART", together)
        assert funnel(state) == expected
    assert not asked
    monkeypatch.setattr(of_shards, "MANY", len(state.stages["pool"].shards))
    assert funnel(state) == expected
    assert len(asked) == 1


@pytest.mark.slow("two processes start")
def test_a_damaged_file_is_named_by_whichever_process_reads_it(numbered_copy, monkeypatch):
    state = numbered_copy
    monkeypatch.setattr(of_shards, "MANY", 1)
    stage = state.stages["first"]
    file = Path(stage.folder.locate(stage.shards[1].files[0]))
    size = file.stat().st_size
    file.unlink()  # the copy's link
    file.write_bytes(b"x" * size)
    with pytest.raises(DamagedError, match=file.name):
        funnel(state)


def test_status_and_the_reports_table_of_work_open_no_data_file(numbered_copy, monkeypatch):
    state = numbered_copy
    for file in Path(state.run.path, "stages").rglob("*-*.parquet"):
        size = file.stat().st_size
        file.unlink()  # the copy's link
        file.write_bytes(bytes(size))  # as large as recorded, and unreadable
    names = opened(monkeypatch)
    said = as_json(live_run(RunState(state.plan, state.run), "complete"), 0.0)["stages"]
    assert {stage["name"]: stage["rows"] for stage in said if stage["rows"]} == dict.fromkeys(
        ("pool", "one", "two", "first", "late", "last"), len(numbered.ROWS)
    )
    assert {stage["name"]: stage["reasons"] for stage in said}["two"] == {
        "no_number": 4,
        "unlucky": 2,
    }
    assert [of.rows for of in work(state)] == [20, 20, 20, 20, 11, 20, 0]  # 9 outside `only:`
    assert not names


def test_reasons_of_a_stage_that_several_passes_made_are_those_of_today(numbered_copy):
    wider = numbered.STAGES.replace("c > 3", "c > 1")
    state = numbered.run(Path(numbered_copy.run.path).parent, wider)
    # two passes, but for shards whose verdicts are the same
    assert {len(records) for records in state.stages["late"].scan.records.values()} == {1, 2}
    assert counts(funnel(state), "late") == (9, {"unlucky": 4}, {}, {}, 7)


@pytest.mark.parametrize("partition_rows", [4, 1 << 20])
def test_rows_with_the_uid_of_an_earlier_row_are_counted(tmp_path, monkeypatch, partition_rows):
    """Some rows in a shard, some in another one; uids that differ in one half are two."""
    monkeypatch.setattr(partitions, "PARTITION_ROWS", partition_rows)
    monkeypatch.setattr(partitions, "HELD_BYTES", 100)
    uids = [1, 2, 1, 1 << 64, 2 << 64, 3, 4, 5, 1, 2, 3, 1 << 64, (1 << 64) + 1]
    rows = [{"id": f"{uid:032x}", "url": "u", "text": "t"} for uid in uids]
    (tmp_path / "pool.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pool = "{uses: ingest.url_list, path: none, uid_col: id, shard_rows: 5}"
    state = numbered.run(tmp_path, f"pool: {pool}")
    assert funnel(state).repeated_uids == len(uids) - len(set(uids))
    monkeypatch.setattr(of_funnel, "ASKED_ROWS", len(uids) - 1)
    assert funnel(state).repeated_uids is None
