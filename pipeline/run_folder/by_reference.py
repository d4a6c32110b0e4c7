"""Ships the states of a pool's shards to workers by reference: as the name of a stored object.

The object has the offsets of its blocks, then the blocks; each holds the states of neighbouring
shards. A worker reads the blocks of the shards it works on, and caches a few.
"""

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import msgspec
import numpy as np

from clipmill.metadata.record import ShardState
from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import StageError

States = Mapping[str, ShardState]  # of one shard, by stage
BLOCK = 64  # shards, 10 kB as stored; a pool of at most this many is pickled as it is
OFFSET = np.dtype("<i8")


class ByShard(Protocol):
    """The states of each shard of a pool."""

    def __len__(self) -> int: ...
    def __getitem__(self, shard: int, /) -> States: ...


class ByReference:
    """The states of all shards in memory; pickling stores them and yields a `Stored`."""

    def __init__(self, states: ByShard, folder: Storage, below: str) -> None:
        self.states, self.folder, self.below = states, folder, below
        self._name = ""

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, shard: int) -> States:
        return self.states[shard]

    def __reduce__(self) -> tuple[Any, ...]:
        if len(self) <= BLOCK:
            return tuple, (tuple(self[shard] for shard in range(len(self))),)
        if not self._name:
            whole = as_object(self.states)
            name = f"{self.below}/{hashlib.sha256(whole).hexdigest()[:16]}.states"
            self.folder.put(name, whole, point="journal")
            self._name = name
        return Stored, (self.folder, self._name, len(self))


@dataclass(frozen=True)
class Stored:
    """The states of all shards in a stored object, read block by block on access."""

    folder: Storage
    name: str
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, shard: int) -> States:
        number, place = divmod(range(self.count)[shard], BLOCK)
        return block_of(self.folder.uri, self.name, number)[place]


def as_object(states: ByShard) -> bytes:
    """Returns the object: the offset of each block, the end, then the blocks."""
    blocks = list(blocks_of(states))
    ends = np.cumsum([len(block) for block in blocks])
    head = OFFSET.itemsize * (len(blocks) + 1)
    return (head + np.append(0, ends)).astype(OFFSET).tobytes() + b"".join(blocks)


def blocks_of(states: ByShard) -> Iterator[bytes]:
    for start in range(0, len(states), BLOCK):
        some = [states[shard] for shard in range(start, min(start + BLOCK, len(states)))]
        yield zlib.compress(json.dumps(msgspec.to_builtins(some)).encode(), 1)


@lru_cache(maxsize=64)
def block_of(uri: str, name: str, number: int) -> tuple[States, ...]:
    """Reads the states of one block; 4,096 shards are cached. Objects never change under a name."""
    folder = Storage(uri)
    try:
        ends = folder.read_at(name, number * OFFSET.itemsize, 2 * OFFSET.itemsize)
        start, end = np.frombuffer(ends, OFFSET).tolist()
        text = zlib.decompress(folder.read_at(name, start, end - start))  # checks its Adler-32
        return msgspec.convert(json.loads(text), tuple[dict[str, ShardState], ...])
    except (ValueError, zlib.error) as error:
        raise StageError("a damaged list of shards", f"{folder}/{name}", "run again") from error
