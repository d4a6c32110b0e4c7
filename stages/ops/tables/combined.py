"""Combines several sets of shards into one that can be shuffled, reduced and restored."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import pyarrow as pa

from clipmill.pipeline.dataset import Shards


class Tables(Protocol):
    """Tables by number."""

    def __len__(self) -> int: ...

    def table(self, index: int) -> pa.Table: ...


class Combined(ABC):
    """`Shards` by their length and `table`, which computes a shard each time it is read."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def table(self, index: int) -> pa.Table: ...

    def __iter__(self) -> Iterator[pa.Table]:
        return (self.table(index) for index in range(len(self)))

    def rows(self, index: int) -> int:
        return -1  # unknown until it is read

    def batches(self, index: int, batch_rows: int = 1024) -> Iterator[pa.Table]:
        table = self.table(index)
        return (table.slice(start, batch_rows) for start in range(0, len(table), batch_rows))

    def select(self, names: Iterable[str]) -> "Zipped":
        return Zipped(partial(pa.Table.select, columns=list(names)), (self,))


@dataclass(frozen=True)
class Concatenated(Combined):
    """The shards of the first member, then those of the next."""

    members: tuple[Shards, ...]

    def __len__(self) -> int:
        return sum(len(member) for member in self.members)

    def table(self, index: int) -> pa.Table:
        for member in self.members:
            if index < len(member):
                return member.table(index)
            index -= len(member)
        raise IndexError(index)


@dataclass(frozen=True)
class Gathered(Combined):
    """One shard with the rows of all, if any: instead of a shuffle, where they fit in memory."""

    over: Shards

    def __len__(self) -> int:
        return min(1, len(self.over))

    def table(self, index: int) -> pa.Table:
        every = [self.over.table(shard) for shard in range(len(self.over))]
        return pa.concat_tables(every, promote_options="default").unify_dictionaries()


@dataclass(frozen=True)
class Zipped(Combined):
    """Shards computed from shard i of every member; members are shuffles by the same keys.

    Members may have different numbers of shards, each a multiple of the smaller ones: shard i goes
    with shard i modulo the smaller number, which has the same keys.
    """

    function: Callable[..., pa.Table]
    members: tuple[Tables, ...]

    def __len__(self) -> int:
        return max(map(len, self.members))

    def table(self, index: int) -> pa.Table:
        return self.function(*(member.table(index % len(member)) for member in self.members))


@dataclass(frozen=True)
class ZippedWithFiner(Combined):
    """Shards computed from shard i of `whole` and, one by one, the finer shards of its keys.

    `finer` is a shuffle by the same keys into a multiple of the number of `whole`.
    """

    function: Callable[[pa.Table, Iterator[pa.Table]], pa.Table]
    whole: Shards
    finer: Shards

    def __len__(self) -> int:
        return len(self.whole)

    def table(self, index: int) -> pa.Table:
        parts = range(index, len(self.finer), len(self.whole))
        return self.function(self.whole.table(index), map(self.finer.table, parts))
