"""Shared by both executors: streams in the callers' threads, one thread that owns all workers."""

import queue
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from clipmill.pipeline.errors import StageError
from clipmill.pipeline.executors import Item, Placed, Step
from clipmill.pipeline.stage import Resources

T = TypeVar("T")

TURN_S = 10.0  # least life of the last worker of equal resources, as models load slowly
LOOK_UP_S = 0.5  # the longest wait of a thread, so that Python can handle signals in between


def stopped() -> StageError:
    return StageError("the run was stopped", "the executor", "run again to go on")


class Stream:
    """One call of `stream` or `launch`, with a queue of items for each step, and its results."""

    def __init__(self, steps: Sequence[Step], packed: Sequence[Any], ranks: int = 0) -> None:
        self.steps = steps
        self.packed = packed  # each step as sent to workers
        self.ranks = ranks  # number of a launch's fresh workers, all placed at once
        self.ids = [uuid.uuid4().hex for _ in steps]
        self.queues: list[deque[Item]] = [deque() for _ in steps]
        self.busy = 0  # workers that hold an item of this stream
        self.served_s = 0.0  # when a worker last got an item of this stream
        self.early_deaths: Counter[int] = Counter()  # consecutive deaths before a start, by step
        self._answers: queue.SimpleQueue[tuple[Item, Exception | None]] = queue.SimpleQueue()

    def begin(self, number: int) -> Item:
        """Takes the next item of a step, for a worker."""
        self.busy += 1
        self.served_s = time.monotonic()
        return self.queues[number].popleft()

    def again(self, number: int, item: Item, is_own: bool = True) -> None:
        """Puts a dead worker's item back at the head; `is_own` is False if its machine died."""
        if hasattr(item, "begun"):
            item.begun = is_own  # the next worker looks for a count of attempts, if true
        self.queues[number].appendleft(item)

    def passed(self, number: int, item: Item) -> None:
        """Passes the item on to the next step, or to the results."""
        if number + 1 < len(self.steps):
            self.queues[number + 1].append(item)
        else:
            self._answers.put((item, None))

    def fail(self, error: Exception) -> None:
        """Makes the stream raise the error, and drops its waiting items."""
        for waiting in self.queues:
            waiting.clear()
        self._answers.put((None, error))

    def next(self) -> Item:
        """Returns the next result; raises the error that the stream failed with."""
        while True:
            with suppress(queue.Empty):
                return self.next_within(LOOK_UP_S)

    def next_within(self, limit_s: float) -> Item:
        """Returns the next result as `next` does; raises queue.Empty if none comes in time."""
        item, error = self._answers.get(timeout=limit_s)
        if error is not None:
            raise error
        return item


class Dispatcher(ABC):
    """An executor whose workers are started, fed and ended by one thread only."""

    def __init__(self) -> None:
        self.on_told: Callable[[Any], None] = lambda message: None
        self._streams: list[Stream] = []  # open ones, oldest first
        self._commands: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._birth = threading.Lock()
        self._closed = False

    @abstractmethod
    def _turn(self) -> None:
        """Gives items to workers, waits for an answer or a command, and handles it."""

    @abstractmethod
    def _ring(self) -> None:
        """Wakes `_turn` up for a command."""

    @abstractmethod
    def _pack(self, step: Step) -> Any:
        """Returns a step in the form sent to workers."""

    @abstractmethod
    def _refuse(self, resources: Resources, where: str, beside: int = 1) -> None:
        """Raises StageError if `beside` workers can never be placed side by side."""

    @abstractmethod
    def _most_inside(self, stream: Stream) -> int:
        """Returns the most items of a stream between source and result."""

    @abstractmethod
    def _holdings(self) -> Iterator[tuple[str, str, float, float]]:
        """Yields the machine, step, CPUs and GPUs of each worker."""

    @abstractmethod
    def _end_workers_of(self, stream: Stream | None) -> None:
        """Ends the busy workers of a stream; all workers for None."""

    def _carry(self, stream: Stream, items: Iterable[Item]) -> Generator[Item]:
        """Yields the results of a stream, in the caller's thread."""
        source, inside = iter(items), 0
        self._open(stream)
        try:
            while True:
                drawn = list(islice(source, max(0, self._most_inside(stream) - inside)))
                inside += len(drawn)
                if not inside:
                    return
                if drawn:
                    self._tell(partial(stream.queues[0].extend, drawn))
                item = stream.next()
                inside -= 1
                yield item
        finally:
            self._ask(lambda: self._leave(stream))

    def stream(self, steps: Sequence[Step], items: Iterable[Item]) -> Generator[Item]:
        for step in steps:
            self._refuse(step.resources, f"step {step.name}")
        return self._carry(Stream(steps, [self._pack(step) for step in steps]), items)

    def halted(self) -> list[int]:
        return []

    def on_machines(self, fn: Callable[[], str]) -> dict[str, str]:
        return {}

    def placed(self) -> list[Placed]:
        counted = Counter(self._holdings())
        return sorted(Placed(*holding, workers) for holding, workers in counted.items())

    def close(self) -> None:
        if self._thread is not None and not self._closed:
            self._ask(self._shut)
            self._thread.join()

    # In the thread that owns the workers

    def _dispatch(self) -> None:
        while not self._closed:
            try:
                self._turn()
            except Exception as error:  # of the machine or Ray: no stream can go on
                for stream in self._streams:
                    stream.fail(error)
                self._streams.clear()
                with suppress(Exception):  # launches leave, and the executor closes
                    self._obey()
        self._obey()

    def _obey(self) -> None:
        """Runs the queued commands."""
        while not self._commands.empty():
            self._commands.get()()

    def _open_ids(self) -> set[str]:
        """Returns ids of steps of open streams; workers drop the functions of all others."""
        return {step for stream in self._streams for step in stream.ids}

    def _waiting(self, resources: Resources) -> int:
        return sum(
            len(waiting)
            for stream in self._streams
            for step, waiting in zip(stream.steps, stream.queues, strict=True)
            if step.resources == resources
        )

    def _by_turn(self) -> Iterator[tuple[Stream, int]]:
        """Yields steps with waiting items: least busy stream first, then last step first."""
        for stream in sorted(self._streams, key=lambda stream: (stream.busy, stream.served_s)):
            for number in reversed(range(len(stream.steps))):
                if stream.queues[number]:
                    yield stream, number

    def _leave(self, stream: Stream) -> None:
        if stream in self._streams:
            self._streams.remove(stream)
        self._end_workers_of(stream)

    def _shut(self) -> None:
        self._closed = True
        for stream in self._streams:
            stream.fail(stopped())
        self._streams.clear()
        self._end_workers_of(None)

    # In other threads

    def _tell(self, command: Callable[[], object]) -> None:
        """Queues a command for the owning thread."""
        with self._birth:
            if self._thread is None:
                self._thread = threading.Thread(target=self._dispatch, daemon=True)
                self._thread.start()
        self._commands.put(command)
        self._ring()

    def _open(self, stream: Stream) -> None:
        """Adds a stream; raises StageError after `close`, as no thread would serve it."""
        self._ask(lambda: self._streams.append(stream))
        if self._closed:
            raise stopped()

    def _ask(self, command: Callable[[], T]) -> T | None:
        """Runs a command in the owning thread; returns its result, None if the executor closed."""
        done: Future[T] = Future()

        def do() -> None:
            try:
                done.set_result(command())
            except Exception as error:
                done.set_exception(error)

        self._tell(do)
        while True:
            try:
                return done.result(LOOK_UP_S)
            except TimeoutError:
                if self._closed and self._thread and not self._thread.is_alive():
                    return None
