"""The run as it stands: what workers say in NumPy's numbers, or too late."""

import json
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from numba import njit

from clipmill.metadata.record import Failure, Record
from clipmill.metadata.sealed import put_sealed, read_sealed
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.engine.worker import worker_of
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.executors import Placed
from clipmill.pipeline.executors import telling as told
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.executors.telling import ProgressEvent
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.run_folder import live, lock
from clipmill.pipeline.run_folder.live import LiveReporter, read_live
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.stage import Environment

STAGES = "  square: {uses: toy.power, from: numbers}\n"
WORD = ProgressEvent(("square",), "0", 3.0, 12.0, "rows")
PLACED = Placed("a machine", "square", 1.0, 0.5, 2)
RECORD = Record(
    shard=0,
    data="0.parquet",
    size_bytes=9,
    sha256="a",
    rows=5,
    computed=5,
    uid_sha256="b",
    parents={},
    counts={"": 4, "odd": 1},
)


@pytest.fixture
def telling(engine, tmp_path):
    """Of a run that has begun nothing."""
    plan = engine.plan(STAGES)
    with lock.held(Storage(str(tmp_path / "run"))) as owned:
        yield LiveReporter(RunState(plan, owned), owned, Lines())


def test_a_run_that_has_ended_has_ended_though_its_lock_is_still_held(telling):
    with pytest.raises(KeyboardInterrupt), telling.kept(LocalExecutor(0)):
        raise KeyboardInterrupt
    assert live.status(telling.folder.uri).phase == "stopped"


def test_units_of_earlier_runs_took_none_of_a_calls_time(telling):
    square = telling.live.stages["square"]
    square.is_row = False
    telling.unit("square", "map", 90, 100, "comparing")
    telling.unit("square", "map", 91, 100, "comparing")  # from here the time counts
    telling.unit("square", "map", 92, 100, "comparing")
    square.call_began = square.call_moved - 10
    assert square.left_s(time.time()) == pytest.approx(80)


def test_a_unit_that_another_stage_has_made_took_none_of_a_calls_time_either(telling):
    square = telling.live.stages["square"]
    square.is_row = False
    telling.unit("square", "map", 0, 2, "training")
    telling.unit("square", "map", 1, 2, "training")
    telling.on_event(ProgressEvent(("square",), "1", 1.0, 100.0, "steps"))
    square.call_began -= 10
    assert square.left_s(time.time()) == pytest.approx(990)


def test_the_time_that_a_call_waits_before_its_first_unit_is_not_counted(telling):
    square = telling.live.stages["square"]
    square.is_row = False
    telling.unit("square", "map", 0, 112, "evaluating")
    square.call_began -= 260  # while trainings have the workers
    telling.unit("square", "map", 1, 112, "evaluating")
    assert square.left_s(time.time()) is None
    square.call_began -= 10
    telling.unit("square", "map", 2, 112, "evaluating")
    assert square.left_s(time.time()) == pytest.approx(1100, rel=0.01)


def test_numbers_of_numpy_are_told_as_plain_ones(monkeypatch, tmp_path):
    said = []
    monkeypatch.setattr(told, "tell", said.append)
    teller = told.ProgressReporter(("train",), "0")
    teller(np.int64(3), np.int64(12), "steps", loss=np.float32(0.5))
    put_sealed(Storage(str(tmp_path)), "it.json", vars(said[0]), point="live")
    assert (read_sealed(Storage(str(tmp_path)), "it.json") or {})["values"] == {"loss": 0.5}


def test_code_that_is_compiled_is_told_of_the_stage_that_works_and_once(monkeypatch):
    said = []
    monkeypatch.setattr(told, "tell", said.append)
    told.ProgressReporter(("near", "far"), "0")
    inner = njit(lambda x: x + 1)
    outer = njit(lambda x: inner(x) * 2)
    assert [outer(2), outer(3)] == [6, 8]
    words = [(event.stages, event.key, event.all) for event in said]
    assert words == [(("near", "far"), told.COMPILING, 1.0), (("near", "far"), told.COMPILING, 0.0)]


def test_a_word_that_comes_too_soon_is_sent_later_and_none_of_what_is_over(monkeypatch):
    said: list[ProgressEvent] = []
    monkeypatch.setattr(told, "tell", said.append)
    teller, other = (told.ProgressReporter(("square",), key) for key in "01")
    for done in (1, 2, 3):
        teller(done, 9)
        other(done, 9)
    other.over()
    assert [(word.key, word.done) for word in said] == [("0", 1), ("1", 1), ("1", 0)]
    deadline = time.monotonic() + 20
    while len(said) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [(word.key, word.done) for word in said[3:]] == [("0", 3)]


def test_short_shards_share_the_thread_that_sends_late_words(monkeypatch):
    monkeypatch.setattr(told, "tell", lambda word: None)
    before = threading.active_count()
    for key in range(50):
        teller = told.ProgressReporter(("square",), str(key))
        teller(1, 9)
        teller(2, 9)
        teller.over()
    assert threading.active_count() <= before + 1


def test_the_making_of_a_python_is_told_until_it_ends_and_so_is_a_server_that_starts(
    engine, tmp_path, monkeypatch
):
    said: list[ProgressEvent] = []
    monkeypatch.setattr(told, "tell", said.append)
    monkeypatch.setenv("CLIPMILL_ENVIRONMENTS", str(tmp_path / "cache"))
    (tmp_path / "cache").write_text("no folder")
    worker = worker_of(engine.plan(STAGES).stages["square"], 0, tmp_path)
    with pytest.raises(StageError, match="no Python can be made"):
        worker.environment(Environment(packages=("nosuch-thing>=2,<3", "other @ file:///x.whl")))
    making = "making a Python with nosuch-thing, other"
    assert [(word.what, word.all) for word in said] == [(making, 1), ("", 0)]
    worker.environment(Environment(packages=("numpy>=2",)))
    assert len(said) == 2

    helper = worker.start_helper(["sleep", "60"], is_healthy=lambda: True, wait_s=9)
    assert [(word.what, word.all) for word in said[2:]] == [
        ("waiting for its server to start", 1),
        ("", 0),
    ]
    helper.stop()


def test_a_word_that_comes_after_a_stage_stopped_does_not_start_it_again(telling):
    telling.stage("square", 3, 0)
    telling.on_event(WORD)
    assert telling.look().stages["square"].status == "running"
    telling.stopped("square", StageError("a fault", "there", "mend it"))
    telling.on_event(WORD)
    live = telling.look().stages["square"]
    assert (live.status, live.pieces) == ("failed", {})
    telling.stage("square", 3, 0)
    assert telling.look().stages["square"].status == "waiting"
    telling.on_event(WORD)
    assert telling.look().stages["square"].status == "running"


def test_a_word_of_a_run_before_with_the_same_workers_is_passed_over(telling):
    before = repr(telling.look())
    telling.on_event(ProgressEvent(("a stage of another recipe",), "0", 3.0, 12.0, "rows"))
    assert repr(telling.look()) == before


def test_what_was_looked_at_stays_as_it_is(telling):
    before = telling.look()
    seen = repr(before)
    telling.stage("square", 3, 0)
    telling.on_event(WORD)
    telling.shard("square", RECORD, 3)
    middle = telling.look()
    half = repr(middle)
    telling.on_event(replace(WORD, key="1"))
    telling.shard("square", replace(RECORD, shard=1), 3)
    telling.failed("square", Failure(2, {}, False, "a fault", "there", "mend it"))
    telling.stopped("square", StageError("a fault", "there", "mend it"))
    assert (repr(before), repr(middle)) == (seen, half)
    assert telling.look().stages["square"].reasons == {"": 8, "odd": 2}


def test_workers_and_those_that_are_stopped_stand_in_what_is_stored(telling, monkeypatch):
    monkeypatch.setattr(live, "STORE_S", 0.01)
    executor = LocalExecutor(0)
    monkeypatch.setattr(executor, "halted", lambda: [12])
    monkeypatch.setattr(executor, "placed", lambda: [PLACED])
    limit = time.monotonic() + 20
    with telling.kept(executor):
        while read_live(telling.folder).halted != [12]:
            assert time.monotonic() < limit
            time.sleep(0.01)
        assert read_live(telling.folder).placed == [PLACED]
    assert (read_live(telling.folder).halted, read_live(telling.folder).placed) == ([], [])


def test_progress_moves_inside_a_batch_of_captions_and_of_links(tmp_path, monkeypatch):
    rows = [{"url": f"http://127.0.0.1:1/{n}", "text": f"the {n}th boat"} for n in range(20)]
    (tmp_path / "pool.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(told, "TELL_S", 0)
    done: dict[str, set[float]] = {"made": set(), "images": set()}
    take = LiveReporter.on_event

    def note(self: LiveReporter, event: ProgressEvent) -> None:
        for name in {*event.stages} & done.keys():
            done[name] |= {event.done} if event.all else set()
        take(self, event)

    monkeypatch.setattr(LiveReporter, "on_event", note)
    stages = {
        "pool": {"uses": "ingest.url_list", "path": str(tmp_path / "pool.jsonl")},
        "made": {"uses": "caption.rewrite", "from": "pool", "model": "reference"},
        "images": {"uses": "download.images", "from": "pool", "retries": 0},
    }
    plan = make_plan(Recipe(name="one", path="one.yaml", seed=0, stages=stages))
    run = Storage(str(tmp_path / "run"))
    run_plan(plan, run, LocalExecutor(0), Lines(), keep_going=True)
    assert {name: len(counts) > 3 and max(counts) for name, counts in done.items()} == {
        "made": 20,
        "images": 20,
    }


def test_a_shard_that_is_made_again_is_not_counted_twice(telling):
    square = telling.live.stages["square"]
    for shard in (0, 1, 1):
        telling.shard("square", replace(RECORD, shard=shard), 2)
    assert (square.shards, square.rows, square.reasons) == (2, 10, {"": 8, "odd": 2})


def test_the_time_that_a_call_waits_for_its_first_worker_is_not_counted(telling):
    telling.unit("square", "map", 0, 1, "training")
    square = telling.live.stages["square"]
    square.call_began = square.call_moved = time.time() - 3600
    telling.on_event(ProgressEvent(("square",), "0", 1.0, 4.0, "steps"))
    assert square.call_began > time.time() - 60
    began = square.call_began
    telling.on_event(ProgressEvent(("square",), "0", 2.0, 4.0, "steps"))
    assert square.call_began == began < square.call_moved
