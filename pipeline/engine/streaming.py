"""Runs stages that stream: a function gets a shard's batches, and returns one for each.

Everything is pulled from the worker's thread: a batch is read when the stage asks for one, and the
stage goes on when its next answer is asked for. Async functions run in an event loop in another
thread, so their requests go on while a batch is read or an answer is stored.
"""

import asyncio
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any

import pyarrow as pa

from clipmill.pipeline.errors import StageError
from clipmill.pipeline.stage import StreamFunction

THREAD = "event loop"
END_S = 5.0  # for an event loop to close: a DNS look-up can hang for minutes


class EventLoop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop, self._stop = asyncio.new_event_loop(), asyncio.Event()
        self._thread = threading.Thread(target=self._live, name=THREAD, daemon=True)
        self._thread.start()

    def _live(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.run(self._stop.wait())

    def close(self) -> None:
        """Cancels the loop's tasks and closes its async generators, and with them open sessions.

        Objects that a stage holds must still exist, or their closing may be cancelled half-way.
        """
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._stop.set)
            if self._thread is not threading.current_thread():  # garbage collection may call us
                self._thread.join(END_S)


def streamed(
    function: StreamFunction, batches: Iterator[pa.Table], events: EventLoop, place: str
) -> Generator[pa.Table]:
    """Yields an answer for each batch, in order.

    Raises StageError if the function returns more or fewer batches, or rows, than it got.
    """
    rows: deque[int] = deque()
    count = 0

    def counted() -> Iterator[pa.Table]:
        nonlocal count
        for batch in batches:
            rows.append(len(batch))
            count += 1
            yield batch

    feed = _Feed(counted())
    output = function(feed)
    if isinstance(output, Iterator):
        answers = _sync(output)
    else:
        answers = _from_loop(output, feed, events.loop)
    try:
        for answer in answers:
            if not rows:
                raise _miscounted(count, count + 1, place)
            if len(answer) != (expected := rows.popleft()):
                raise StageError(
                    f"{len(answer)} rows came back for {expected}",
                    place,
                    "a row stage keeps its rows",
                )
            yield answer
        if rows or next(feed, None) is not None:
            raise _miscounted(count, count - len(rows), place)
    finally:
        answers.close()


def _miscounted(batches: int, answers: int, place: str) -> StageError:
    return StageError(
        f"{answers} batches came back for {batches}",
        place,
        "a stage that streams gives back a batch for each that it takes, and takes them all",
    )


class _Feed:
    """The batches as an iterator, sync or async, for the stage to pull from."""

    def __init__(self, batches: Iterator[pa.Table]) -> None:
        self._batches = batches
        self._coming: asyncio.Future[pa.Table | None] | None = None
        # The worker's thread waits here for requests of a batch, for answers, and for the end.
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
        coming = self._coming
        # A cancelled wait loses no batch: the next call gets it.
        batch = await asyncio.shield(coming)
        if batch is None:
            raise StopAsyncIteration
        if self._coming is coming:  # `end` may have put the end in its place
            self._coming = None
        return batch

    def end(self) -> None:
        """Ends the batches; called in the loop."""
        if self._coming is None or self._coming.done():
            self._coming = asyncio.get_running_loop().create_future()
        self._coming.set_result(None)


def _sync(output: Iterator[pa.Table]) -> Generator[pa.Table]:
    try:
        yield from output
    finally:
        if close := getattr(output, "close", None):
            close()


def _from_loop(
    output: AsyncIterator[pa.Table], feed: _Feed, loop: asyncio.AbstractEventLoop
) -> Generator[pa.Table]:
    """Yields the answers of an async iterator in the loop; batches it asks for are read here."""
    requests = asyncio.Semaphore(0)
    tasks: list[asyncio.Task[None]] = []

    def begin() -> None:
        tasks.append(loop.create_task(pass_on()))
        tasks[0].add_done_callback(feed.calls.put)

    async def pass_on() -> None:
        try:
            while await requests.acquire():
                feed.calls.put(await anext(output))
        except StopAsyncIteration:
            pass
        finally:
            if close := getattr(output, "aclose", None):
                await close()

    def give_up() -> None:
        tasks[0].cancel()
        feed.end()

    loop.call_soon_threadsafe(begin)
    loop.call_soon_threadsafe(requests.release)
    has_ended = False
    try:
        while not (has_ended := isinstance(call := feed.calls.get(), asyncio.Task)):
            if isinstance(call, asyncio.Future):
                loop.call_soon_threadsafe(call.set_result, next(feed, None))
            else:
                yield call
                loop.call_soon_threadsafe(requests.release)
        if call.cancelled():
            raise RuntimeError("its work was cancelled in the event loop")
        call.result()
    finally:
        if not has_ended:
            loop.call_soon_threadsafe(give_up)
        while not has_ended:  # nobody wants what the stage still answers on its way out
            has_ended = isinstance(feed.calls.get(), asyncio.Task)
