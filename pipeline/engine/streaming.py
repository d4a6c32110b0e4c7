"""A stage that streams: its function gets the batches of a shard, and gives one back for each.

All is pulled, in the worker's thread: a batch is read when the stage asks for one, and the stage
goes on when its next answer is asked for. The async kind runs in an event loop in a thread beside
it: while a batch is read or an answer is stored, its requests go on.
"""

import asyncio
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Generator, Iterator
from concurrent.futures import Future
from typing import Any

import pyarrow as pa

from clipmill.pipeline.errors import StageError
from clipmill.pipeline.stage import StreamFunction

THREAD = "event loop"
Begun = tuple[asyncio.AbstractEventLoop, asyncio.Event]  # a loop, and what ends it
END_S = 5.0  # what is open in an event loop has so long to close: a look-up can hang for minutes


class EventLoop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        started: Future[Begun] = Future()
        self._thread = threading.Thread(target=_live, args=(started,), name=THREAD, daemon=True)
        self._thread.start()
        self.loop, self._stop = started.result()

    def close(self) -> None:
        """Cancels its tasks and closes its async generators: so a session ends that either holds.

        Whatever a stage holds must still be held, or its end might be cancelled half-way.
        """
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._stop.set)
            if self._thread is not threading.current_thread():  # any thread may collect garbage
                self._thread.join(END_S)


def _live(started: "Future[Begun]") -> None:
    async def wait() -> None:
        stop = asyncio.Event()
        started.set_result((asyncio.get_running_loop(), stop))
        await stop.wait()

    try:
        loop = asyncio.new_event_loop()
    except OSError as error:  # it opens files, and there may be too many
        started.set_exception(error)
        return
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(wait())


def streamed(
    function: StreamFunction, batches: Iterator[pa.Table], events: EventLoop, place: str
) -> Generator[pa.Table]:
    """An answer for each batch, in their order.

    StageError where the function gives back other batches, or batches of other rows, than it got.
    """
    rows: deque[int] = deque()
    given = 0

    def noted() -> Iterator[pa.Table]:
        nonlocal given
        for batch in batches:
            rows.append(len(batch))
            given += 1
            yield batch

    feed = _Feed(noted())
    made = function(feed)
    answers = _sync(made) if isinstance(made, Iterator) else _from_loop(made, feed, events.loop)
    try:
        for answer in answers:
            if not rows:
                raise _miscounted(given, given + 1, place)
            if len(answer) != (expected := rows.popleft()):
                raise StageError(
                    f"{len(answer)} rows came back for {expected}",
                    place,
                    "a row stage keeps its rows",
                )
            yield answer
        if rows or next(feed, None) is not None:
            raise _miscounted(given, given - len(rows), place)
    finally:
        answers.close()


def _miscounted(given: int, back: int, place: str) -> StageError:
    return StageError(
        f"{back} batches came back for {given}",
        place,
        "a stage that streams gives back a batch for each that it takes, and takes them all",
    )


class _Feed:
    """The batches, as a stage of either kind asks for them."""

    def __init__(self, batches: Iterator[pa.Table]) -> None:
        self._batches = batches
        self._coming: asyncio.Future[pa.Table | None] | None = None
        # What the worker's thread waits for: wishes for a batch, answers, and the end.
        self.calls: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> pa.Table:
        return next(self._batches)

    def __aiter__(self) -> "_Feed":
        return self

    async def __anext__(self) -> pa.Table:
        if self._coming is None:
            self._coming = asyncio.get_running_loop().create_future()
            self.calls.put(self._coming)
        # Whoever gives up waiting loses no batch: the next one gets it.
        batch = await asyncio.shield(self._coming)
        if batch is None:
            raise StopAsyncIteration
        self._coming = None
        return batch

    def end(self) -> None:
        """From now on there are no more batches: called in the loop."""
        if self._coming is None or self._coming.done():
            self._coming = asyncio.get_running_loop().create_future()
        self._coming.set_result(None)


def _sync(made: Iterator[pa.Table]) -> Generator[pa.Table]:
    try:
        yield from made
    finally:
        if close := getattr(made, "close", None):
            close()


def _from_loop(
    made: AsyncIterator[pa.Table], feed: _Feed, loop: asyncio.AbstractEventLoop
) -> Generator[pa.Table]:
    """What an async iterator gives in the loop; its wishes for batches are answered from here."""
    wanted = asyncio.Semaphore(0)
    tasks: list[asyncio.Task[None]] = []

    def begin() -> None:
        tasks.append(loop.create_task(pass_on()))
        tasks[0].add_done_callback(feed.calls.put)

    async def pass_on() -> None:
        try:
            while await wanted.acquire():
                feed.calls.put(await anext(made))
        except StopAsyncIteration:
            pass
        finally:
            if close := getattr(made, "aclose", None):
                await close()

    def give_up() -> None:
        tasks[0].cancel()
        feed.end()

    loop.call_soon_threadsafe(begin)
    loop.call_soon_threadsafe(wanted.release)
    has_ended = False
    try:
        while not (has_ended := isinstance(call := feed.calls.get(), asyncio.Task)):
            if isinstance(call, asyncio.Future):
                loop.call_soon_threadsafe(call.set_result, next(feed, None))
            else:
                yield call
                loop.call_soon_threadsafe(wanted.release)
        if call.cancelled():
            raise RuntimeError("its work was cancelled in the event loop")
        call.result()
    finally:
        if not has_ended:
            loop.call_soon_threadsafe(give_up)
        while not has_ended:
            has_ended = isinstance(feed.calls.get(), asyncio.Task)
