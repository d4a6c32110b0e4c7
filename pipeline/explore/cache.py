"""Caches values within a number of bytes."""

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Cache(Generic[K, V]):
    """A cache that drops the least recently used values; it keeps the newest, whatever its size."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: K, value: V, nbytes: int) -> None:
        with self._lock:
            self._values[key] = value, nbytes
            self._values.move_to_end(key)
            total = sum(size for _, size in self._values.values())
            while len(self._values) > 1 and total > self.most_bytes:
                _, (_, size) = self._values.popitem(last=False)
                total -= size
