"""Local workers: order, errors, deaths, and what is left of a stream that ends early."""

import os
import signal
import threading
import time
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from pipeline.errors import ShardError, StageError
from pipeline.executors import Step
from pipeline.executors.local import LocalExecutor
from pipeline.stage import Resources

ONE = Resources(cpus=1)


@dataclass(frozen=True)
class Start:
    """A step's start: gives the function that it holds."""

    function: object

    def __call__(self):
        return self.function


def step(function, resources=ONE) -> Step:
    return Step(name=function.__name__, start=Start(function), resources=resources)


def numbers(count):
    return ({"n": n} for n in range(count))


def double(item):
    return item | {"n": item["n"] * 2}


def mark(item):
    return item | {"pid": os.getpid(), "threads": os.environ.get("OMP_NUM_THREADS")}


def refuse_three(item):
    if item["n"] == 3:
        raise ShardError("three", "the item", "leave it out")
    return item


def raise_unpicklable(item):
    error = ValueError("held")
    error.lock = threading.Lock()
    raise error


def die(item):
    """Kills its worker as often as the item asks for."""
    seen = len(list(Path(item["flags"]).glob(f"{item['n']}-*")))
    if seen < item.get("deaths", 0):
        (Path(item["flags"]) / f"{item['n']}-{seen}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def die_in_mid_answer(item):
    """Kills its worker, the first time, when half of the answer is in the pipe."""
    flag = Path(item["flags"]) / "half"
    if not flag.exists():
        flag.touch()
        Connection.send_bytes = half_an_answer
    return item


def half_an_answer(pipe, data):
    os.write(pipe.fileno(), (1000).to_bytes(4, "big") + b"half")
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_a_file(item):
    """The first item fails when the second is in hand; the second never ends by itself."""
    folder = Path(item["folder"])
    if item["n"] == 1:
        (folder / "second").touch()
        while True:
            time.sleep(0.01)
    while not (folder / "second").exists():
        time.sleep(0.01)
    raise StageError("first", "here", "stop")


def die_at_birth():
    os._exit(3)


@pytest.fixture(scope="module")
def pair():
    """Two workers, shared: a test that breaks one finds it replaced."""
    executor = LocalExecutor(2)
    yield executor
    executor.close()


def test_every_item_passes_every_step_in_order(pair):
    for executor in (LocalExecutor(0), pair):
        out = [i["n"] for i in executor.stream([step(double), step(double)], numbers(9))]
        assert sorted(out) == [n * 4 for n in range(9)]


def test_workers_live_on_and_each_profile_has_its_own(pair):
    two = replace(ONE, cpus=2)
    narrow = [i for _ in range(2) for i in pair.stream([step(mark)], numbers(8))]
    wide = list(pair.stream([step(mark, two)], numbers(4)))
    assert len({i["pid"] for i in narrow}) <= 2
    assert {i["threads"] for i in narrow} == {"1"}
    assert len({i["pid"] for i in wide}) == 1  # two workers' worth of processors make one of these
    assert {i["threads"] for i in wide} == {"2"}


def test_items_in_flight_are_bounded():
    taken = 0

    def source():
        nonlocal taken
        for item in numbers(100):
            taken += 1
            yield item

    executor = LocalExecutor(1)
    try:
        next(executor.stream([step(double)], source()))
        assert taken <= 4
    finally:
        executor.close()


def test_a_dead_workers_item_is_done_by_another(pair, tmp_path):
    items = [{"n": n, "flags": str(tmp_path), "deaths": n == 2} for n in range(6)]
    assert sorted(i["n"] for i in pair.stream([step(die)], items)) == list(range(6))
    assert len(list(tmp_path.iterdir())) == 1


def test_an_item_may_end_every_worker_that_there_is_before_one_has_answered(tmp_path):
    executor = LocalExecutor(1)  # attempts are counted by the item's function, not here
    items = [{"n": 0, "flags": str(tmp_path), "deaths": 4}]
    try:
        assert [i["n"] for i in executor.stream([step(die)], items)] == [0]
    finally:
        executor.close()


def test_a_worker_that_dies_in_mid_answer_is_replaced(pair, tmp_path):
    items = [{"n": n, "flags": str(tmp_path)} for n in range(3)]
    out = pair.stream([step(die_in_mid_answer)], items)
    assert sorted(i["n"] for i in out) == [0, 1, 2]


def test_an_exception_reaches_the_caller_as_it_is(pair):
    for executor in (LocalExecutor(0), pair):
        with pytest.raises(ShardError) as raised:
            list(executor.stream([step(refuse_three)], numbers(6)))
        assert raised.value.args == ("three", "the item", "leave it out")


def test_an_exception_that_cannot_travel_is_told_in_words(pair):
    with pytest.raises(RuntimeError, match="ValueError: held"):
        list(pair.stream([step(raise_unpicklable)], numbers(1)))


def test_a_stream_after_a_failed_one_gets_only_its_own_items(pair, tmp_path):
    items = [{"n": n, "folder": str(tmp_path)} for n in range(2)]
    with pytest.raises(StageError):
        list(pair.stream([step(wait_for_a_file)], items))
    out = [i["n"] for i in pair.stream([step(double)], numbers(5))]
    assert sorted(out) == [0, 2, 4, 6, 8]


def test_a_stream_left_early_leaves_nothing_to_the_next(pair):
    for _ in pair.stream([step(mark)], numbers(20)):
        break
    assert sorted(i["n"] for i in pair.stream([step(double)], numbers(3))) == [0, 2, 4]


def test_workers_that_cannot_start_are_an_error_not_a_loop(monkeypatch):
    executor = LocalExecutor(2)
    monkeypatch.setattr("pipeline.executors.local._serve", die_at_birth)
    try:
        with pytest.raises(StageError, match="exit code") as raised:
            list(executor.stream([step(double)], numbers(4)))
        assert "--workers 0" in raised.value.args[2]
    finally:
        executor.close()


def meet(folder: Path, rank: int, of: int) -> dict:
    """Ends only when all ranks are there: they run side by side."""
    (folder / str(rank)).touch()
    while len(list(folder.iterdir())) < of:
        time.sleep(0.01)
    return {"rank": rank, "of": of, "pid": os.getpid()}


def one_fails(rank: int, of: int) -> dict:
    if rank == 1:
        raise StageError("rank one", "there", "look")
    while True:
        time.sleep(0.01)


def one_dies(rank: int, of: int) -> dict:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    while True:
        time.sleep(0.01)


def test_launched_ranks_run_side_by_side_and_answer_in_order(tmp_path):
    results = LocalExecutor(2).launch(partial(meet, tmp_path), 3, ONE)
    assert [result["rank"] for result in results] == [0, 1, 2]
    assert {result["of"] for result in results} == {3}
    assert len({result["pid"] for result in results}) == 3


def test_a_failed_rank_ends_all_and_says_why():
    with pytest.raises(StageError, match="rank one"):
        LocalExecutor(2).launch(one_fails, 2, ONE)


def test_a_dead_rank_ends_all_and_is_named():
    with pytest.raises(StageError, match="rank 1 of 2 died"):
        LocalExecutor(2).launch(one_dies, 2, ONE)
