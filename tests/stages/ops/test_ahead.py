"""Batches side by side: their order, how many rows at once, and what an error leaves."""

import asyncio
import contextlib

import pyarrow as pa
import pytest

from clipmill.stages.ops.ahead import ahead


def numbered(*sizes):
    """Batches of these many rows, each with its own number."""
    return [pa.table({"n": [number] * size}) for number, size in enumerate(sizes)]


class Started:
    """A `start` whose batches end when they are told to; it notes who is under way."""

    def __init__(self):
        self.begun, self.cancelled, self.rows, self.most_rows = [], [], 0, 0
        self.ends: dict[int, asyncio.Event] = {}

    def __getitem__(self, number) -> asyncio.Event:
        return self.ends.setdefault(number, asyncio.Event())

    async def __call__(self, batch):
        number = batch["n"][0].as_py() if len(batch) else None
        self.begun.append(number)
        self.rows += len(batch)
        self.most_rows = max(self.most_rows, self.rows)
        try:
            await self[number].wait()
        except asyncio.CancelledError:
            self.cancelled.append(number)
            raise
        self.rows -= len(batch)
        if number == 13:
            raise ZeroDivisionError(number)
        return batch


async def given(batches):
    for batch in batches:
        yield batch


async def settled():
    """Every task that can go on has gone on."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_results_come_in_the_order_of_the_batches_whichever_ends_first():
    async def run():
        start = Started()
        results = ahead(given(numbered(2, 2, 2)), start, rows_ahead=10)
        first = asyncio.create_task(anext(results))
        for number in (2, 1, 0):
            await settled()
            assert not first.done()
            start[number].set()
        rest = [await first, *[table async for table in results]]
        return [table["n"][0].as_py() for table in rest]

    assert asyncio.run(run()) == [0, 1, 2]


def test_a_batch_begins_while_a_slow_one_before_it_is_under_way():
    async def run():
        start = Started()
        results = ahead(given(numbered(*[2] * 6)), start, rows_ahead=6)
        first = asyncio.create_task(anext(results))
        await settled()
        assert start.begun == [0, 1, 2]  # and no more: their rows are six
        start[1].set()
        start[2].set()
        await settled()
        assert start.begun == [0, 1, 2]  # results that nobody took count too
        start[0].set()
        await first
        await settled()
        assert start.begun == [0, 1, 2, 3]  # without another look at the results
        await results.aclose()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("sizes", "most"), [([3, 3, 3, 3], 9), ([50, 1, 50], 50), ([0, 0, 4, 4, 4], 8), ([], 0)]
)
def test_rows_under_way_stay_below_the_limit_but_one_batch_always_runs(sizes, most):
    async def run():
        start = Started()
        for number in (None, *range(len(sizes))):
            start[number].set()
        results = ahead(given(numbered(*sizes)), start, rows_ahead=10)
        assert [len(table) async for table in results] == sizes
        return start.most_rows

    assert asyncio.run(run()) <= most


def test_an_error_comes_in_its_turn_and_cancels_what_is_under_way():
    async def run():
        start = Started()
        batches = [pa.table({"n": [number]}) for number in (11, 12, 13, 14, 15)]
        results = ahead(given(batches), start, rows_ahead=4)
        start[13].set()
        first = asyncio.create_task(anext(results))
        await settled()
        assert not first.done()  # 13 has failed, and those before it are still wanted
        start[11].set()
        start[12].set()
        assert [(await first)["n"][0].as_py(), (await anext(results))["n"][0].as_py()] == [11, 12]
        await settled()
        with pytest.raises(ZeroDivisionError):
            await anext(results)
        assert sorted(start.cancelled) == [14, 15]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


def test_an_error_of_the_batches_comes_after_the_results_before_it():
    async def torn():
        yield pa.table({"n": [1]})
        raise OSError("the disk")

    async def run():
        start = Started()
        start[1].set()
        results = ahead(torn(), start, rows_ahead=4)
        assert (await anext(results))["n"].to_pylist() == [1]
        with pytest.raises(OSError, match="the disk"):
            await anext(results)

    asyncio.run(run())


def test_results_that_nobody_wants_any_more_are_cancelled():
    async def run():
        start = Started()
        start[0].set()
        async with contextlib.aclosing(ahead(given(numbered(1, 1, 1)), start, 3)) as results:
            await anext(results)
            await settled()
        assert sorted(start.cancelled) == [1, 2]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())
