"""What the driver does for an item on Ray, counted: the same however many actors there are."""

import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError

from clipmill.pipeline import executors
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.executors import Step, ray_pools
from clipmill.pipeline.executors import ray as on_ray
from clipmill.pipeline.executors.ray import why_ended
from clipmill.pipeline.executors.telling import EventQueue
from clipmill.pipeline.stage import Resources
from tests.pipeline.executors.fake_actors import fake_executor

HERE = str(Path(executors.__file__).parent)
ONE = Resources()
OTHER = Resources(memory_gb=3)


def negated(item):
    return -item


def step(resources=ONE) -> Step:
    return Step(name="negate", start=partial(partial, negated), resources=resources)


def lines(actors: int, items: int, *before: Resources) -> int:
    """Lines of the executors' code that its thread runs, the loops of comprehensions too."""
    count = 0

    def here(frame, event, argument):
        nonlocal count
        count += event == "line"
        return here

    def trace(frame, event, argument):
        nonlocal count
        if frame.f_code.co_filename.startswith(HERE):
            count += 1
            return here
        return None

    threading.settrace(trace)
    try:
        with fake_executor(actors) as (executor, cluster):
            for resources in before:
                list(executor.stream([step(resources)], range(items)))
            count = 0
            done = list(executor.stream([step()], range(items)))
            assert cluster.placed >= actors
    finally:
        threading.settrace(None)
    assert sorted(done) == [-item for item in reversed(range(items))]
    return count


class Held:
    """An item that an actor holds as it dies."""

    def __init__(self) -> None:
        self.begun, self.was, self.tries = True, [], 0


LOST = "The actor died unexpectedly.\nThe actor died because its node has died. Node Id: 7"


@pytest.mark.parametrize(
    ("death", "is_own"),
    [
        (RayActorError("a", LOST, False), False),
        (NodeDiedError("unreachable"), False),
        (RayActorError("a", "worker ended by SIGKILL"), True),
        (OutOfMemoryError("too little memory"), True),
    ],
    ids=["node", "node of a task", "killed", "memory"],
)
def test_a_count_is_looked_for_but_where_the_machine_went_away(death, is_own):
    item = Held()

    def tried(held):
        held.was.append(held.begun)
        held.tries += 1
        return death if held.tries == 1 else held

    work = Step(name="dies", start=partial(partial, tried), resources=ONE)
    with fake_executor(1) as (executor, _):
        (done,) = executor.stream([work], [item])
    assert done.was == [True, is_own]


ENDED = """3 worker(s) were killed due to the node running low on memory.
Selected to kill: (Actor(ac): job ID=01, required resources={memory: 1.07374e+08, CPU: 1}, pid=1, \
actual memory used=%sGB, worker ID=2e)
Selected to kill: (Actor(ad): job ID=01, required resources={memory: 2.14748e+09, CPU: 1}, pid=2, \
actual memory used=2.50GB, worker ID=2e)
Selected to kill: (Actor(ae): job ID=01, required resources={}, pid=3, actual memory used=0.06GB)"""


@pytest.mark.parametrize(
    ("used_gb", "why"),
    [("0.90", "it took 0.9 GB of memory, and its machine had too little"), ("0.40", None)],
)
def test_of_actors_that_ray_ends_at_once_the_one_furthest_above_its_declared_memory_is_blamed(
    used_gb, why
):
    assert why_ended(OutOfMemoryError(ENDED % used_gb), "ac") == why


@pytest.mark.parametrize("before", [(), (OTHER,)], ids=["alone", "after another profile"])
def test_an_item_costs_the_driver_no_more_where_there_are_more_actors(before):
    few, many = lines(5, 300, *before), lines(60, 300, *before)
    assert many < 1.6 * few, "most of it is for the actors' start"


def test_a_launch_whose_ray_dies_leaves_and_the_executor_closes(monkeypatch):
    def dead():
        raise StageError("raylet has died", "here", "look")

    waited = threading.Event()

    def wait(seconds):  # as long as the driver's thread takes to see it
        cluster.check_alive = dead
        return waited.wait(0.05)

    monkeypatch.setattr(on_ray, "placement_group", lambda *_, **__: SimpleNamespace(wait=wait))
    monkeypatch.setattr(on_ray, "remove_placement_group", lambda group: None)
    with fake_executor(2) as (executor, cluster):
        with pytest.raises(StageError, match="raylet has died"):
            executor.launch(lambda rank: {}, 1, ONE)
        closing = threading.Thread(target=executor.close, daemon=True)
        closing.start()
        closing.join(5)
        is_closed = not closing.is_alive()
        cluster.check_alive = waited.set  # else this test would not end
    assert is_closed


def test_workers_of_a_stream_and_of_a_launch_tell_their_progress_to_one_queue(monkeypatch):
    both, made = threading.Barrier(2), []

    def remote(kind):
        if kind is EventQueue:
            with suppress(threading.BrokenBarrierError):
                both.wait(0.1)
            made.append(kind)
        return mock.MagicMock()

    monkeypatch.setattr(ray_pools, "ray", SimpleNamespace(remote=remote))
    pools = ray_pools.ActorPools(mock.Mock(), 2, {})
    new = threading.Thread(target=pools.new, args=(ONE, {"CPU": 1, "memory": 1}))
    new.start()
    pools.new(ONE, {"CPU": 1, "memory": 1})
    new.join()
    assert made == [EventQueue]


def test_an_item_costs_the_driver_no_more_where_there_are_more_items():
    few, many = lines(10, 100), lines(10, 400)
    assert many < 4 * few
