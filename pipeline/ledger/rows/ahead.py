"""Reads shards ahead by several threads: a store answers many requests at once.

Many shards are read by several processes, as one interpreter slows two threads.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from clipmill.metadata.storage import Storage
from clipmill.pipeline.executors import Step
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.stage import Resources

T = TypeVar("T")
S = TypeVar("S")
READERS = 16  # threads for an object store: each waits for an answer
DISK_READERS = 2  # threads for a disk: one decodes while another reads
MANY = 2_000  # shards from which a process for each CPU pays: it takes a second to start
PART = 50  # shards of one task of a process


def ahead(run: Storage, read: Callable[[S], T], shards: Iterable[S]) -> Iterator[T]:
    """Yields read(shard) for each, in order; holds at most one result per thread."""
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
        finally:  # the caller may stop early
            for future in waiting:
                future.cancel()


def read_parts(
    state: RunState,
    read: Callable[[RunState, Sequence[int]], T],
    shards: Sequence[int],
    many: int = 0,
) -> Iterator[T]:
    """Yields read(state, part) over parts of PART shards, in order.

    From `many` shards on (else MANY) a process for each CPU reads them, and `read` is pickled.
    """
    parts = [shards[start : start + PART] for start in range(0, len(shards), PART)]
    if len(shards) < (many or MANY) or os.cpu_count() == 1:
        yield from (read(state, part) for part in parts)
        return
    start = partial(partial, _numbered, state, read)
    step = Step(name="reading shards", start=start, resources=Resources(memory_gb=1))
    done: dict[int, T] = {}
    following = 0
    executor = LocalExecutor(with_main=False)
    try:
        for number, result in executor.stream([step], enumerate(parts)):
            done[number] = result
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
