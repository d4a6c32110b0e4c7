"""What the driver does for an item on Ray, counted: the same however many actors there are."""

import threading
from functools import partial
from pathlib import Path

import pytest

from clipmill.pipeline import executors
from clipmill.pipeline.executors import Step
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


@pytest.mark.parametrize("before", [(), (OTHER,)], ids=["alone", "after another profile"])
def test_an_item_costs_the_driver_no_more_where_there_are_more_actors(before):
    few, many = lines(5, 300, *before), lines(60, 300, *before)
    assert many < 2 * few, "most of it is for the actors' start"


def test_an_item_costs_the_driver_no_more_where_there_are_more_items():
    few, many = lines(10, 100), lines(10, 400)
    assert many < 4 * few
