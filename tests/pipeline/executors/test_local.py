"""What is the local executor's own: processes that stay, pipes that break, work in this process."""

import os
import re
import signal
import threading
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from clipmill.pipeline.errors import RankDiedError, RankLostError, ShardError, StageError
from clipmill.pipeline.executors import Step, local_worker, machine
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.stage import Resources
from tests.pipeline.executors.work import (
    ONE,
    OTHER,
    Weighed,
    die_four_times,
    die_in_mid_answer,
    fail_on_seven,
    grow_a_child_on_seven,
    grow_on_seven,
    pid,
    see_gpus,
    step,
    until,
    wait_for,
)


@pytest.fixture(scope="module")
def single():
    """One CPU and one GPU."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("CUDA_VISIBLE_DEVICES", "7")
        with closing(LocalExecutor(1)) as executor:
            yield executor


def test_with_no_workers_all_is_done_in_this_process():
    executor = LocalExecutor(0)
    assert list(executor.stream([step(pid), step(str)], range(3))) == [str(os.getpid())] * 3
    with pytest.raises(ShardError, match="seven"):
        list(executor.stream([step(fail_on_seven)], [{"i": 7}]))


def test_idle_workers_of_every_profile_stay_while_memory_lasts(single):
    seen = {
        resources: {
            worker for _ in range(3) for worker in single.stream([step(pid, resources)], range(2))
        }
        for resources in (ONE, OTHER)
    }
    seen[ONE] |= set(single.stream([step(pid, ONE)], range(2)))
    assert [len(pids) for pids in seen.values()] == [1, 1]


@pytest.mark.parametrize(("counts", "lost"), [([3, 3], True), ([3, 4], False), ([3, None], False)])
def test_a_rank_that_somebody_killed_is_lost_and_no_crash(
    counts, lost, single, tmp_path, monkeypatch
):
    monkeypatch.setattr(machine, "oom_kills", iter(counts).__next__)
    with pytest.raises(RankDiedError) as caught:
        single.launch(partial(die_four_times, tmp_path), 1, ONE)
    assert isinstance(caught.value, RankLostError) == lost
    assert ("the kernel had no more memory" in str(caught.value)) == (counts == [3, 4])


@pytest.mark.chaos
@pytest.mark.parametrize("by", ["itself", "a child"])
def test_a_worker_that_takes_too_much_memory_is_ended_alone_and_its_item_is_told(by, tmp_path):
    grow = grow_on_seven if by == "itself" else partial(grow_a_child_on_seven, tmp_path / "pid")
    with closing(LocalExecutor(2)) as executor:
        first = [worker for worker in executor.stream([step(pid)], range(4))]
        held = sum(machine.resident_bytes(worker) for worker in set(first))
        executor._most_bytes = held + (160 << 20)
        items = [Weighed(i) for i in range(20)]
        done = sorted(executor.stream([step(grow)], items), key=lambda item: item.i)
    assert [item.i for item in done] == list(range(20))
    assert [item.i for item in done if item.ended] == [7]
    assert done[7].ended.startswith("it took 0.")
    assert not done[7].killed
    if by == "a child":
        child = (tmp_path / "pid").read_text()
        assert re.search(rf"0\.\d of them its child python\S* \(process {child}\)", done[7].ended)
        until(lambda: machine.resident_bytes(int(child)) == 0)


def test_an_idle_worker_ends_where_another_profile_lacks_its_gpu(single, tmp_path):
    gpu, other_gpu = Resources(gpus=1, memory_gb=0.1), Resources(gpus=1, memory_gb=0.2)
    (first,) = single.stream([step(pid, gpu)], [0])
    (same,) = single.stream([step(pid, replace(gpu))], [0])
    (second,) = single.stream([step(pid, other_gpu)], [0])
    assert first == same != second
    assert not Path(f"/proc/{first}").exists()


def bound(function, *arguments):
    return step(partial(function, *arguments))


def test_an_item_may_end_every_worker_that_there_is_before_one_has_answered(single, tmp_path):
    # Attempts are counted by the item's function, not here.
    assert list(single.stream([bound(die_four_times, tmp_path)], [0])) == [0]


def test_a_worker_that_dies_in_mid_answer_is_replaced(single, tmp_path):
    assert sorted(single.stream([bound(die_in_mid_answer, tmp_path)], range(3))) == [0, 1, 2]


def test_workers_that_cannot_even_boot_are_an_error_not_a_loop(monkeypatch):
    monkeypatch.setattr(local_worker, "BOOT", "raise SystemExit(3)")
    with (
        closing(LocalExecutor(1)) as executor,
        pytest.raises(StageError, match=r"exit code 3") as raised,
    ):
        list(executor.stream([step(pid)], range(4)))
    assert "--workers 0" in raised.value.args[2]


class Unpicklable:
    def __reduce__(self):
        raise TypeError("not to be sent")


def test_an_item_that_cannot_be_sent_ends_its_stream(single):
    with pytest.raises(TypeError, match="not to be sent"):
        list(single.stream([step(pid)], [Unpicklable()]))
    assert len(list(single.stream([step(pid)], range(2)))) == 2


def test_a_stream_that_is_open_when_all_ends_raises(tmp_path):
    executor, caught = LocalExecutor(1), []

    def waiting():
        try:
            list(executor.stream([bound(wait_for, tmp_path / "never")], [0]))
        except StageError as error:
            caught.append(error)

    thread = threading.Thread(target=waiting)
    thread.start()
    until(lambda: executor._streams)
    executor.close()
    thread.join()
    assert "stopped" in str(caught[0])


def test_work_that_begins_after_the_end_raises_and_does_not_wait_for_ever():
    executor = LocalExecutor(1)
    assert list(executor.stream([step(pid)], [])) == []
    executor.close()
    with pytest.raises(StageError, match="stopped"):
        next(executor.stream([step(pid)], [0]))
    with pytest.raises(StageError, match="stopped"):
        executor.launch(pid, 1, ONE)


def test_a_gpu_is_named_as_the_driver_of_the_run_sees_it(single, tmp_path):
    gpu = Resources(gpus=0.5, memory_gb=0.1)
    named = Step(name="gpu", start=bound(see_gpus, tmp_path, 1).start, resources=gpu)
    assert list(single.stream([named], [0])) == ["7"]


def test_as_many_workers_have_a_place_as_cpus_memory_and_gpus_allow(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    monkeypatch.setattr("clipmill.pipeline.executors.machine.memory_gb", lambda: 20.0)
    executor = LocalExecutor(8)
    places = {
        Resources(memory_gb=1): 8,
        Resources(cpus=3, memory_gb=1): 2,
        Resources(cpus=100, memory_gb=1): 1,  # it gets what there is
        Resources(memory_gb=4): 5,
        Resources(gpus=1, memory_gb=1): 3,
        Resources(gpus=2, memory_gb=1): 1,
        Resources(gpus=0.5, memory_gb=1): 6,
        Resources(gpus=4, memory_gb=1): 0,
    }
    assert {resources: executor.places(resources) for resources in places} == places
    executor._memory_gb = 0.3
    assert executor._room(Resources(memory_gb=0.1), 3, []) == [()] * 3
    executor.close()


def test_a_worker_that_a_signal_stopped_is_known_until_it_goes_on(single, tmp_path):
    done, (worker,) = tmp_path / "done", single.stream([step(pid)], [0])
    results: list = []
    stream = single.stream([step(partial(wait_for, done))], [0])
    thread = threading.Thread(target=lambda: results.extend(stream))
    thread.start()
    until(lambda: any(one.job for one in single._living))
    assert single.halted() == []
    os.kill(worker, signal.SIGSTOP)
    try:
        until(lambda: single.halted() == [worker])
    finally:
        os.kill(worker, signal.SIGCONT)
    until(lambda: single.halted() == [])
    done.touch()
    thread.join()
    assert results == [0]
