"""What is read of each shard, by several threads: a store answers many requests at once."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from metadata.storage import Storage

T = TypeVar("T")
S = TypeVar("S")
READERS = 16  # of an object store: each waits for an answer
DISK_READERS = 2  # one decodes while another reads


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
