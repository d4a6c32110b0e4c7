"""Several sets of shards read as one; what is put together can be shuffled and restored."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from pipeline.dataset import Shards


class Combined(ABC):
    """What both kinds have in common. Implements `Shards`, but for its length and `table`."""

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

    def select(self, names: Iterable[str]) -> "Beside":
        return Beside(partial(pa.Table.select, columns=list(names)), (self,))


@dataclass(frozen=True)
class Together(Combined):
    """The shards of each, one after another."""

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
class Beside(Combined):
    """What a function makes of partition i of each: of shuffles by equal keys.

    One into a divisor of the others' number begins again: its partition has the keys of theirs.
    """

    function: Callable[..., pa.Table]
    members: tuple[Shards, ...]

    def __len__(self) -> int:
        return max(map(len, self.members))

    def table(self, index: int) -> pa.Table:
        return self.function(*(member.table(index % len(member)) for member in self.members))


@dataclass(frozen=True)
class Gathered(Combined):
    """What a function makes of partition i, and one by one of those of a finer shuffle there.

    Both are by equal keys, and the finer one into a multiple of the other's number.
    """

    function: Callable[[pa.Table, Iterator[pa.Table]], pa.Table]
    whole: Shards
    finer: Shards

    def __len__(self) -> int:
        return len(self.whole)

    def table(self, index: int) -> pa.Table:
        parts = range(index, len(self.finer), len(self.whole))
        return self.function(self.whole.table(index), map(self.finer.table, parts))
