"""Attempts at a piece of work: how often it is tried, and what a crash leaves behind."""

import json

import pytest

from clipmill.metadata import storage
from clipmill.metadata.damage import DamagedError
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine import attempts
from clipmill.pipeline.engine.attempts import attempt, fail, forget
from clipmill.pipeline.errors import (
    CrashedError,
    LostLockError,
    RetryableError,
    ShardError,
    StageError,
)
from clipmill.pipeline.executors import machine


def test_what_a_file_manager_leaves_among_the_counts_is_passed_over(tmp_path):
    folder = Storage(str(tmp_path))
    for name in ("000012.attempt", "000007.chain.attempt", ".DS_Store", "._000012.attempt"):
        folder.put(f"{attempts.FOLDER}/{name}", b"", "attempt")
    assert attempts.of_shards(folder) == {7, 12}


class KilledError(BaseException):
    """The end of a process, as far as one in this process can be."""


class Work:
    """Raises its errors one after another, then answers with the number of the attempt."""

    def __init__(self, folder, *errors):
        self.folder, self.errors, self.numbers = Storage(str(folder)), list(errors), []

    def __call__(self, number):
        self.numbers.append(number)
        if self.errors:
            raise self.errors.pop(0)
        return number

    def attempt(self, inputs="a", run="first", least=1, **how):
        return attempt(self, self.folder, "it", inputs, run, "stage 'it', shard 0", least, **how)

    def is_counted(self):
        return self.folder.has("it.attempt")


def busy():
    return RetryableError("busy", "there", "wait")


def test_work_is_tried_again_while_its_error_may_pass(tmp_path):
    work = Work(tmp_path, busy(), busy())
    assert work.attempt() == 3
    assert not work.is_counted()


def test_the_third_error_is_the_last(tmp_path):
    work = Work(tmp_path, busy(), busy(), busy(), busy())
    with pytest.raises(RetryableError):
        work.attempt()
    assert work.numbers == [1, 2, 3]
    assert not work.is_counted()


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (ShardError("bad", "there", "mend it"), ShardError),
        (StageError("bad", "there", "mend it"), StageError),
        (DamagedError("folder", "name", "torn"), DamagedError),
        (ValueError("bad"), ShardError),
        (MemoryError(), ShardError),
    ],
    ids=["shard", "stage", "damage", "unexpected", "memory"],
)
def test_other_errors_end_the_work_at_once_and_are_not_taken_for_a_crash(error, raised, tmp_path):
    work = Work(tmp_path, error)
    with pytest.raises(raised) as caught:
        work.attempt()
    if isinstance(error, MemoryError):  # which is no fault of the stage's
        assert caught.value.args[0] == "too little memory"
        assert "mend the stage" not in caught.value.args[2]
    assert work.numbers == [1]
    assert not work.is_counted()


def test_a_run_that_lost_its_folder_writes_nothing_more(tmp_path):
    work = Work(tmp_path, LostLockError("taken", "there", "wait"))
    with pytest.raises(LostLockError):
        work.attempt()
    assert work.is_counted()


def killed(work, **how):
    work.errors = [KilledError()]
    with pytest.raises(KilledError):
        work.attempt(**how)


def test_work_that_ends_its_worker_three_times_in_a_run_is_a_crash(tmp_path):
    work = Work(tmp_path)
    for _ in range(3):
        killed(work)
    with pytest.raises(CrashedError, match="stage 'it', shard 0 ended its worker 3 times"):
        work.attempt()
    with pytest.raises(CrashedError, match="ended its worker 3 times: it took 9 GB") as caught:
        work.attempt(ended="it took 9 GB")
    assert caught.value.args[2].startswith("give fewer workers")
    assert len(work.numbers) == 3


def test_workers_killed_from_outside_are_no_crashes_but_no_run_goes_on_for_ever(tmp_path):
    work = Work(tmp_path)
    for number in range(attempts.MAX_KILLED):
        killed(work, killed=number)
    with pytest.raises(StageError, match="shard 0 was killed from outside 20 times"):
        work.attempt(killed=attempts.MAX_KILLED)
    for number in range(attempts.MAX_KILLED):
        killed(work, run="next", killed=number)
    for _ in range(3):
        killed(work, run="other", killed=1)
    killed(work, run="other", killed=1)
    with pytest.raises(CrashedError, match="ended its worker 3 times"):
        work.attempt(run="other", killed=1)


@pytest.mark.chaos
@pytest.mark.parametrize("by", ["somebody", "the kernel"])
def test_a_shard_whose_worker_was_killed_is_set_aside_where_the_kernel_did_it(
    by, engine, tmp_path, monkeypatch
):
    counter, script = tmp_path / "vmstat", tmp_path / "mood.json"
    counter.write_text("pgfault 7\noom_kill 0\n")
    monkeypatch.setattr(machine, "OWN_CGROUPS", tmp_path / "none")
    monkeypatch.setattr(machine, "KERNEL", counter)
    raised = {"counter": str(counter)} if by == "the kernel" else {}
    script.write_text(json.dumps({"killed": {"13": 4}, **raised}))
    stages = f"  copy: {{uses: toy.moody, from: numbers, script: {script}}}\n"
    ran = engine.run(stages, workers=1)
    assert ran.complete == (by == "somebody")
    if by == "the kernel":
        failure = ran.failures("copy")[1]
        assert failure.crashed
        assert "ended its worker 3 times: the kernel had no more memory" in failure.found
        assert failure.found.endswith(" GB")
    assert sorted(ran.column("copy", "copy", 0)) == sorted(ran.column("numbers", "number", 0))


def test_a_count_starts_again_for_other_inputs_for_another_run_and_when_forgotten(tmp_path):
    work = Work(tmp_path)
    for _ in range(3):
        killed(work)
    assert work.attempt(inputs="b") == 1
    for _ in range(3):
        killed(work)
    assert work.attempt(run="second") == 1
    for _ in range(3):
        killed(work)
    forget(work.folder)
    assert work.attempt() == 1


def test_work_in_hand_in_any_number_of_runs_that_were_killed_is_no_crash(tmp_path):
    work = Work(tmp_path)
    for number in range(30):
        killed(work, run=f"run {number}")
    assert work.attempt(run="one more") == 1


def test_a_count_of_an_older_version_with_ten_killed_runs_is_no_crash(tmp_path):
    work = Work(tmp_path)
    text = b'{"inputs": "a", "run": "before", "attempts": 1, "runs": 10}'
    work.folder.put("it.attempt", text, point="attempt")
    assert work.attempt() == 1


def test_where_one_crash_is_enough_a_second_attempt_is_refused(tmp_path):
    work = Work(tmp_path)
    assert work.attempt(least=3) == 1
    killed(work, least=3)
    with pytest.raises(CrashedError):
        work.attempt(least=3)


def test_work_that_nobody_began_is_counted_without_a_look(tmp_path, monkeypatch):
    work = Work(tmp_path)
    monkeypatch.setattr(Storage, "read", None)
    killed(work, begun=False)
    monkeypatch.undo()
    for _ in range(2):
        killed(work)
    with pytest.raises(CrashedError):
        work.attempt()


def test_a_count_may_outlive_success_but_no_error(tmp_path):
    work = Work(tmp_path)
    assert work.attempt(keep_count=True) == 1
    assert work.is_counted()
    work.errors = [ShardError("bad", "there", "mend it")]
    with pytest.raises(ShardError):
        work.attempt(keep_count=True)
    assert not work.is_counted()


def test_a_shard_in_hand_in_runs_that_were_killed_is_done_by_the_next(engine, monkeypatch):
    stages = "  square: {uses: toy.power, from: numbers}\n"
    engine.run(stages, until="numbers")

    def reached(point, name):
        if (point, name) == ("record", "000001.json"):
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(storage, "reached", reached)
        for _ in range(12):
            for record in (engine.folder / "run" / "stages").glob("square-*/000001.json"):
                record.unlink()  # the kill came when it was stored
            with pytest.raises(KilledError):
                engine.run(stages)
    for record in (engine.folder / "run" / "stages").glob("square-*/000001.json"):
        record.unlink()
    ran = engine.run(stages)
    assert ran.complete
    assert not ran.failures("square")
    assert not list((engine.folder / "run").glob("stages/*/attempts"))


def test_a_shard_set_aside_says_whether_it_crashed(tmp_path):
    folder = Storage(str(tmp_path))
    error = ("bad", "there", "mend it")
    assert fail(folder, 0, {}, CrashedError(*error)).crashed
    assert not fail(folder, 1, {}, ShardError(*error)).crashed
