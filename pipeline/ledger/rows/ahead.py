"""What is read of each shard, by several threads: a store answers many requests at once.

Of many shards by several processes too, as two threads are held up by one interpreter.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import TypeVar

from clipmill.metadata.storage import Storage
from clipmill.pipeline.executors import Step
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.stage import Resources

T = TypeVar("T")
S = TypeVar("S")
READERS = 16  # of an object store: each waits for an answer
DISK_READERS = 2  # one decodes while another reads
MANY = 2_000  # shards that are worth a process for each CPU, of which one takes a second to start
PART = 50  # shards that a process is handed at once


def ahead(run: Storage, read: Callable[[S], T], shards: Iterable[S]) -> Iterator[T]:
    """read(shard) for each, in order; no more are held than threads read."""
    readers = DISK_READERS if run.is_local else READERS
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(readers) as pool:
        try:
            for shard in shards:
                waiting.append(pool.submit(read, shard))
                if len(waiting) == readers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # it may be left early
            for future in waiting:
                future.cancel()


def of_each(
    state: RunState, read: Callable[[RunState, int], T], shards: Sequence[int]
) -> Iterator[T]:
    """read(state, shard) of each, in order: for many it is pickled, and so is what it gives."""
    return chain.from_iterable(of_parts(state, partial(_of_each, read), shards, MANY))


def of_parts(
    state: RunState,
    read: Callable[[RunState, Sequence[int]], T],
    shards: Sequence[int],
    many: int,
) -> Iterator[T]:
    """read(state, some shards) of all, PART of them at a time, in order: of so `many` and more a
    process for each CPU reads them."""
    parts = [shards[start : start + PART] for start in range(0, len(shards), PART)]
    if len(shards) < many or os.cpu_count() == 1:
        yield from (read(state, part) for part in parts)
        return
    start = partial(partial, _numbered, state, read)
    step = Step(name="reading shards", start=start, resources=Resources(memory_gb=1))
    done: dict[int, T] = {}
    following = 0
    executor = LocalExecutor(with_main=False)
    try:
        for number, found in executor.stream([step], enumerate(parts)):
            done[number] = found
            while following in done:
                yield done.pop(following)
                following += 1
    finally:
        executor.close()


def _numbered(
    state: RunState, read: Callable[[RunState, Sequence[int]], T], part: tuple[int, Sequence[int]]
) -> tuple[int, T]:
    number, shards = part
    return number, read(state, shards)


def _of_each(read: Callable[[RunState, int], T], state: RunState, shards: Sequence[int]) -> list[T]:
    return list(ahead(state.run, partial(read, state), shards))
