"""Stages that stream: their batches, their order, their ends, alone and among others."""

import asyncio
import contextlib
import gc
import json
import os
import resource
import threading
import time
import tracemalloc  # noqa: F401  # pytest imports it to tell of a half-made loop: no file opens then
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest

from clipmill.pipeline.engine.streaming import EventLoop, _Feed, streamed
from clipmill.pipeline.errors import StageError

PLACE = "stage 'x' (toy.x), shard 7"
KINDS = pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])


def batches(*sizes):
    for number, size in enumerate(sizes):
        yield pa.table({"n": [number] * size})


def numbers(answers):
    return [answer["n"][0].as_py() for answer in answers]


# The function alone


@pytest.fixture
def events():
    with contextlib.closing(EventLoop()) as made:
        yield made


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # asyncio's half
def test_a_loop_that_cannot_begin_is_an_error_and_no_wait_for_ever():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()  # a thread needs none
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))  # no other file can be opened
        try:
            with pytest.raises(OSError, match="Too many open files"):
                pool.submit(EventLoop).result(timeout=5)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_batch_is_read_when_the_stage_asks_and_no_sooner(events):
    read = []

    def noted():
        for batch in batches(1, 1, 1):
            read.append(batch["n"][0].as_py())
            yield batch

    async def one_by_one(given):
        async for batch in given:
            yield batch

    answers = streamed(one_by_one, noted(), events, PLACE)
    assert read == []
    assert numbers([next(answers)]) == [0]
    assert read == [0]
    assert numbers(answers) == [1, 2]


def test_batches_are_read_in_the_thread_of_the_worker_while_the_loop_goes_on(events):
    ticks, threads = [], set()

    def slow():
        for batch in batches(1, 1, 1):
            threads.add(threading.current_thread())
            before = len(ticks)
            while len(ticks) < before + 5:  # the loop ticks while this thread reads
                pass
            yield batch

    async def ticking(given):
        async def tick():
            while True:
                ticks.append(None)
                await asyncio.sleep(0.001)

        ticker = asyncio.create_task(tick())
        async for batch in given:
            yield batch
        ticker.cancel()

    assert numbers(streamed(ticking, slow(), events, PLACE)) == [0, 1, 2]
    assert threads == {threading.current_thread()}


def test_a_wish_that_is_given_up_loses_no_batch(events):
    def late():
        for batch in batches(1, 1, 1):
            threading.Event().wait(0.03)
            yield batch

    async def impatient(given):
        wanted = 3
        while wanted:
            try:
                batch = await asyncio.wait_for(anext(given), 0.01)
            except TimeoutError:
                continue
            wanted -= 1
            yield batch

    assert numbers(streamed(impatient, late(), events, PLACE)) == [0, 1, 2]


async def keep(given):
    async for batch in given:
        yield batch


async def lose(given):
    await anext(given)
    async for batch in given:
        yield batch


async def stop_early(given):
    yield await anext(given)


async def repeat(given):
    async for batch in given:
        yield batch
        yield batch


async def cut(given):
    async for batch in given:
        yield batch.slice(1)


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lose, "2 rows came back for 1"),
        (stop_early, "1 batches came back for 2"),
        (repeat, "2 batches came back for 1"),
        (cut, "0 rows came back for 1"),
        (lambda given: iter([]), "0 batches came back for 1"),
        (lambda given: map(lambda b: b.slice(1), given), "0 rows came back for 1"),
    ],
)
def test_other_batches_than_it_took_are_the_fault_of_the_stage(function, found, events):
    with pytest.raises(StageError, match=found) as error:
        list(streamed(function, batches(1, 2, 1), events, PLACE))
    assert error.value.args[1] == PLACE


def test_no_batches_are_no_answers(events):
    assert list(streamed(keep, batches(), events, PLACE)) == []
    assert list(streamed(lambda given: given, batches(), events, PLACE)) == []


def test_an_error_of_whoever_reads_comes_as_it_is_and_ends_the_function(events):
    ended = []

    def torn():
        yield from batches(1, 1)
        raise OSError("the disk")

    async def held(given):
        try:
            taken = [await anext(given) for _ in range(3)]
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            ended.append(await anext(given, "nothing more"))
            raise
        yield taken[0]

    with pytest.raises(OSError, match="the disk"):
        list(streamed(held, torn(), events, PLACE))
    assert ended == ["nothing more"]


def test_an_error_of_the_function_comes_as_it_is(events):
    async def failing(given):
        yield await anext(given)
        raise ZeroDivisionError("in the loop")

    answers = streamed(failing, batches(1, 1), events, PLACE)
    next(answers)
    with pytest.raises(ZeroDivisionError, match="in the loop"):
        next(answers)


def test_answers_that_nobody_wants_end_the_function(events):
    ended = []

    async def held(given):
        try:
            async for batch in given:
                yield batch
        finally:
            await asyncio.sleep(0)
            ended.append("async")

    def also(given):
        try:
            yield from given
        finally:
            ended.append("sync")

    for function in (held, also):
        answers = streamed(function, batches(1, 1), events, PLACE)
        next(answers)
        answers.close()
    assert ended == ["async", "sync"]


def test_batches_end_for_a_stage_that_had_not_taken_the_last_when_it_was_given_up(events):
    async def takes_all():
        feed = _Feed(iter(()))
        taken = asyncio.create_task(feed.__anext__())
        await asyncio.sleep(0)
        feed.calls.get().set_result("last")
        feed.end()  # before the task goes on
        return [await taken, *[batch async for batch in feed]]

    ran = asyncio.run_coroutine_threadsafe(takes_all(), events.loop)
    assert ran.result(5) == ["last"]


def test_a_loop_that_ends_closes_what_is_open_in_it():
    ended, tasks = [], []

    async def session():
        try:
            yield "open"
        finally:
            await asyncio.sleep(0)
            ended.append("generator")

    async def forever():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("task")

    opened = session()

    async def function(given):
        await anext(opened)
        tasks.append(asyncio.create_task(forever()))
        async for batch in given:
            yield batch

    before = set(threading.enumerate())
    events = EventLoop()
    (thread,) = set(threading.enumerate()) - before
    assert numbers(streamed(function, batches(1), events, PLACE)) == [0]
    assert ended == []
    events.close()
    assert sorted(ended) == ["generator", "task"]
    assert not thread.is_alive()


# In runs

CHAIN = """
  first: {uses: toy.flowing, from: numbers, script: %(script)s, is_async: %(is_async)s}
  plain: {uses: toy.moody, from: first, read: {number: first.copy}, script: %(script)s}
  last:  {uses: toy.flowing, from: plain, read: {number: plain.copy}, script: %(script)s}
"""


class Toys:
    """Runs of the chain, or of a recipe, in a mood."""

    def __init__(self, engine, is_async=True):
        self.engine = engine
        self.script = engine.folder / "mood.json"
        self.words = {"script": self.script, "is_async": is_async}
        self.mood()

    def mood(self, **mood):
        self.script.write_text(json.dumps(mood))
        self.script.with_suffix(".log").write_text("")

    def run(self, recipe=CHAIN, *overrides, **options):
        return self.engine.run(recipe % self.words, *overrides, **options)

    def asked(self):
        return [int(number) for number in self.script.with_suffix(".log").read_text().split()]


@pytest.fixture
def toys(engine):
    return Toys(engine)


@KINDS
def test_streaming_and_plain_stages_run_as_one_chain(engine, is_async):
    toys = Toys(engine, is_async)
    ran = toys.run()
    assert ran.complete
    for stage in ("first", "plain", "last"):
        assert ran.column(stage, "copy") == list(range(31))
    assert sorted(toys.asked()) == sorted([*range(31)] * 3)  # once each: no stage was redone


def test_the_loop_of_a_run_is_one_and_ends_with_it(toys):
    from clipmill_own.toy import flowing

    def left() -> list[str]:
        gc.collect()
        loops = [it.name for it in threading.enumerate() if it.name == "event loop"]
        return [*flowing.OPEN, *loops]

    assert toys.run().complete
    begun = time.monotonic()
    while left() and time.monotonic() < begun + 10:  # another thread may be at closing them
        time.sleep(0.01)
    assert left() == []


@KINDS
def test_a_mask_and_a_retry_ask_for_their_rows_alone(engine, is_async):
    recipe = """
  chosen: {uses: select.where, from: numbers, where: number < 3 OR number > 27}
  copy: {uses: toy.flowing, from: numbers, only: chosen, script: %(script)s, is_async: %(is_async)s}
"""
    toys = Toys(engine, is_async)
    toys.mood(timeout=[2, 29])
    ran = toys.run(recipe)
    assert ran.complete
    assert sorted(toys.asked()) == [0, 1, 2, 28, 29, 30]
    wanted = [n if n in (0, 1, 28, 30) else None for n in range(31)]
    assert ran.column("copy", "copy") == wanted
    toys.mood()
    ran = toys.run(recipe, "chosen.where=number < 5", retry=("timeout",))
    assert sorted(toys.asked()) == [2, 3, 4]
    assert ran.column("copy", "copy") == [n if n < 5 else None for n in range(31)]


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ("fewer batches", "0 batches came back for"),
        ("more batches", "8 rows came back for 4"),
        ("fewer rows", "7 rows came back for 8"),
    ],
)
@KINDS
def test_a_stage_that_loses_batches_or_rows_stops_by_name(engine, is_async, wrong, found):
    toys = Toys(engine, is_async)
    toys.mood(wrong=wrong)
    ran = toys.run(CHAIN.replace("first:", "only:").split("  plain")[0])
    assert found in ran.error("only")
    assert "stage 'only' (toy.flowing), shard 0" in ran.error("only")


@KINDS
def test_an_error_of_one_stage_is_told_of_it_and_the_others_are_stored(engine, is_async):
    toys = Toys(engine, is_async)
    toys.mood(**{"raise": [13]})
    recipe = """
  fine:  {uses: toy.power, from: numbers}
  moody: {uses: toy.flowing, from: numbers, script: %(script)s, is_async: %(is_async)s}
"""
    ran = toys.run(recipe)
    assert list(ran.failures("moody")) == [1]
    assert "in a bad mood" in ran.failures("moody")[1].found
    assert sorted(ran.records("fine")) == [0, 1, 2, 3]
    toys.mood()
    assert toys.run(recipe).complete
    assert sorted(set(toys.asked())) == list(range(12, 20))


def test_a_worker_of_its_own_streams_too(toys):
    ran = toys.run(workers=1)
    assert ran.complete
    assert ran.column("last", "copy") == list(range(31))
