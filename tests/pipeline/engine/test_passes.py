"""Passes: what a wider mask or a retry adds to a shard, and how readers see all of it as one."""

import json
import re
from pathlib import Path

import pytest

from clipmill.pipeline.executors import telling
from clipmill.pipeline.executors.telling import ProgressEvent
from clipmill.pipeline.progress import stage_line
from clipmill.pipeline.run_folder.live import LiveReporter, live_run, read_live
from tests.engine_stages.harness import toy_stages
from tests.pipeline.conftest import Engine

MASKED = """
  chosen: {uses: select.where, from: numbers, where: number < 3 OR number > 27}
  cube:   {uses: toy.power, from: numbers, only: chosen, exponent: 3}
  after:  {uses: toy.power, from: cube, read: {number: cube.power}, exponent: 1}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with toy_stages():
        engine = Engine(tmp_path_factory.mktemp("finished"))
        assert engine.run(MASKED).complete
        yield engine


@pytest.fixture
def narrow(finished, tmp_path) -> Engine:
    """A finished run of MASKED, to be run again otherwise."""
    return finished.copy(tmp_path)


def masked(rule: str) -> str:
    return f"chosen.where={rule}"


def cubes(*numbers: int) -> list[int | None]:
    return [n**3 if n in numbers and n % 7 else None for n in range(31)]


def test_rows_outside_the_mask_are_not_computed_and_say_so(narrow):
    ran = narrow.run(MASKED)
    assert ran.complete
    assert ran.column("cube", "power") == cubes(1, 2, 29, 30)
    reasons = ran.column("cube", "reason")
    assert reasons[:4] == ["sevenfold", None, None, "not_selected"]
    assert [r.counts["not_selected"] for [r] in ran.records("cube").values() if r.rows] == [9, 8, 8]
    assert ran.column("after", "power") == cubes(1, 2, 29, 30)


def test_a_wider_mask_computes_only_the_new_rows_and_keeps_the_old(narrow):
    before = narrow.run(MASKED)
    wide = narrow.run(MASKED, masked("number < 5"))
    assert wide.complete
    first, second = wide.records("cube")[0]
    assert (first.computed, second.computed) == (12, 2)
    assert second.name == "000000.p1.json"
    assert wide.written("cube")[first.data] == before.written("cube")[first.data]
    assert wide.column("cube", "power") == cubes(1, 2, 3, 4)
    assert wide.column("after", "power") == cubes(1, 2, 3, 4)


def test_a_stage_under_a_mask_tells_how_many_of_its_own_rows_are_done(engine, monkeypatch):
    told = []
    monkeypatch.setattr("clipmill.pipeline.executors.telling.tell", told.append)
    engine.run(MASKED, masked("number < 5"))
    rows = {word.key: word.all for word in told if word.stages == ("cube",) and word.what}
    assert rows["0"] == 5
    assert set(rows.values()) == {5, 1}  # nothing of the others: they are done at once


def test_log_and_status_count_the_rows_of_every_pass(narrow):
    for rule, today in (("number < 5", 26), ("number < 20", 11), ("number < 3", 28)):
        ran = narrow.run(MASKED, masked(rule))
        told = read_live(ran.outcome.state.run)
        assert told.stages["cube"].kinds["not selected"] == today
        assert (
            live_run(ran.outcome.state, "complete").stages["cube"].reasons
            == told.stages["cube"].reasons
        )
        assert sum(told.stages["cube"].reasons.values()) == 31


def test_status_of_a_later_pass_that_is_damaged_tells_what_was_first_counted(narrow):
    ran = narrow.run(MASKED, masked("number < 5"))
    folder = Path(str(ran.outcome.state.stages["cube"].folder))
    file = folder / ran.records("cube")[0][1].data
    file.write_bytes(b"x" * file.stat().st_size)
    assert live_run(ran.outcome.state, "complete").stages["cube"].kinds["not selected"] == 26 + 2


def test_a_narrower_mask_computes_nothing_and_reads_null(engine):
    engine.run(MASKED, masked("number < 20"))
    ran = engine.run(MASKED, masked("number < 3"))
    assert ran.complete
    assert ran.column("cube", "power") == cubes(1, 2)
    assert ran.column("cube", "reason")[12:] == ["not_selected"] * 19
    assert ran.column("after", "power") == cubes(1, 2)
    assert all(
        record.computed == 0 for records in ran.records("cube").values() for record in records[1:]
    )


def test_masks_one_after_another_end_where_one_would(engine):
    for rule in ("number < 3", "number > 8", "number < 20 AND number > 4", "number < 25"):
        ran = engine.run(MASKED, masked(rule))
        assert ran.complete
    fresh = engine.run(MASKED, masked("number < 25"), out="fresh")
    for stage, column in (("cube", "power"), ("cube", "reason"), ("after", "power")):
        assert ran.column(stage, column) == fresh.column(stage, column)


def test_a_mask_once_answered_for_is_not_looked_at_again(engine):
    for rule in ("number < 9", "number < 3", "number < 9"):
        engine.run(MASKED, masked(rule))
    before = engine.run(MASKED, masked("number < 3")).written("cube")
    assert engine.run(MASKED, masked("number < 3")).written("cube") == before


def test_taking_the_mask_away_computes_the_rest(narrow):
    whole = narrow.run(MASKED.replace(", only: chosen", ""))
    assert whole.complete
    assert whole.column("cube", "power") == cubes(*range(31))
    masked_again = narrow.run(MASKED)  # all is there already
    assert masked_again.records("cube") == whole.records("cube")
    assert masked_again.column("cube", "power") == cubes(1, 2, 29, 30)


def test_a_changed_shard_forgets_its_passes(narrow):
    narrow.run(MASKED, masked("number < 9"))
    kept = (narrow.pool / "0.txt").read_text()
    (narrow.pool / "0.txt").write_text("\n".join(map(str, range(100, 120))))
    narrow.run(MASKED, masked("number > 110"))
    changed = narrow.run(MASKED, masked("number > 110"))
    assert len(changed.records("cube")[0]) == 1
    before = changed.written("cube")
    assert narrow.run(MASKED, masked("number > 110")).written("cube") == before
    (narrow.pool / "0.txt").write_text(kept)
    again = narrow.run(MASKED, masked("number < 7"))
    assert again.column("cube", "power") == cubes(*range(7))


# Retries


@pytest.fixture
def moody(engine):
    """Runs toy.moody over the pool; the script lists the numbers that time out."""
    script = engine.folder / "mood.json"

    def run(timeout: list[int], retry: tuple[str, ...] = (), more: str = ""):
        script.write_text(json.dumps({"timeout": timeout}))
        (engine.folder / "mood.log").unlink(missing_ok=True)
        stages = f"  copy: {{uses: toy.moody, from: numbers, script: {script}}}\n{more}"
        return engine.run(stages, retry=retry)

    return run


def seen(engine) -> list[int]:
    log = engine.folder / "mood.log"
    return list(map(int, log.read_text().split())) if log.exists() else []


def test_rows_that_failed_for_now_stay_until_they_are_retried(engine, moody):
    first = moody([5, 13])
    assert first.complete
    assert first.column("copy", "reason").count("timeout") == 2
    moody([])
    assert seen(engine) == []
    third = moody([], retry=("timeout",))
    assert seen(engine) == [5, 13]
    assert third.column("copy", "copy") == list(range(31))
    assert set(third.column("copy", "reason")) == {None}


def test_a_retry_that_fails_again_may_be_retried(engine, moody):
    moody([5, 6])
    moody([5], retry=("timeout",))
    third = moody([], retry=("timeout",))
    assert seen(engine) == [5]
    assert [record.computed for record in third.records("copy")[0]] == [12, 2, 1]
    assert third.column("copy", "copy") == list(range(31))


def test_progress_of_a_retry_never_passes_the_rows_there_are(engine, moody, monkeypatch):
    moody([5, 6, 13])
    said: list[str] = []
    monkeypatch.setattr(telling, "TELL_S", 0)
    take = LiveReporter.on_event

    def look(self: LiveReporter, event: ProgressEvent) -> None:
        take(self, event)
        stage = self.look().stages["copy"]
        if stage.status == "running":
            said.append(stage_line(stage, 0.0))

    monkeypatch.setattr(LiveReporter, "on_event", look)
    moody([5], retry=("timeout",))
    rows = [int(count) for line in said for count in re.findall(r"shards, (\d+) rows", line)]
    assert rows
    assert set(rows) == {31}
    assert "4 of 4 shards, 31 rows, 1 of 1 more rows, 3 failed" in said


def test_progress_of_a_retry_counts_a_shard_once_where_others_are_not_stored_yet(
    engine, moody, monkeypatch
):
    folder = Path(str(moody([5, 13]).outcome.state.stages["copy"].folder))
    for file in (*folder.glob("000003*"), folder / "records.parquet", folder / "manifest.json"):
        file.unlink()
    seen = []
    shard = LiveReporter.shard

    def look(self: LiveReporter, name: str, *told: object) -> None:
        shard(self, name, *told)
        stage = self.look().stages[name]
        seen.append((stage.shards, stage.rows, stage.status))

    monkeypatch.setattr(LiveReporter, "shard", look)
    moody([], retry=("timeout",))
    assert seen == [(3, 20, "running"), (3, 20, "running"), (4, 31, "done")]


def test_a_retry_without_anything_to_retry_writes_nothing(engine, moody):
    more = MASKED.replace("cube:   {", "cube: {")
    moody([5], more=more)
    before = moody([], retry=("timeout",), more=more)
    after = moody([], retry=("timeout",), more=more)
    assert seen(engine) == []
    for stage in ("copy", "cube"):
        assert after.written(stage) == before.written(stage)


def test_what_stands_after_a_retried_row_is_computed_again_in_its_shard_alone(engine, moody):
    more = "  after: {uses: toy.power, from: copy, read: {number: copy.copy}}\n"
    first = moody([5], more=more)
    assert first.column("after", "reason")[5] == "no_number"
    after = moody([], retry=("timeout",), more=more)
    assert after.column("after", "power")[5] == 25
    assert [
        first.written("after")[r.data] == after.written("after")[r.data]
        for shard, [r] in sorted(after.records("after").items())
        if shard
    ] == [True] * 3


def test_a_retry_under_a_mask_leaves_the_rows_outside_alone(engine, moody):
    script = engine.folder / "mood.json"
    stages = f"""
  chosen: {{uses: select.where, from: numbers, where: number < 10}}
  copy: {{uses: toy.moody, from: numbers, only: chosen, script: {script}}}
"""
    script.write_text(json.dumps({"timeout": [5, 13]}))
    engine.run(stages)
    script.write_text(json.dumps({}))
    (engine.folder / "mood.log").unlink()
    ran = engine.run(stages, retry=("timeout",))
    assert seen(engine) == [5]
    assert ran.column("copy", "copy") == [n if n < 10 else None for n in range(31)]


def test_a_retry_is_not_forgotten_where_a_new_stage_goes_first_in_the_chain(engine, moody):
    moody([5])
    (engine.folder / "mood.json").write_text(json.dumps({}))
    (engine.folder / "mood.log").unlink()
    stages = f"""
  square: {{uses: toy.power, from: numbers}}
  copy: {{uses: toy.moody, from: numbers, script: {engine.folder / "mood.json"}}}
"""
    ran = engine.run(stages, retry=("timeout",))
    assert seen(engine) == [5]
    assert ran.column("copy", "copy") == list(range(31))
