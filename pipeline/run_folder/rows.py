"""Reads the rows of a stage's inputs: columns of one shard from several stages.

Workers get the states of a pool's shards by reference: as the name of a stored object. It has the
offsets of its blocks, then the blocks; each holds the states of neighbouring shards. A worker reads
the blocks of the shards it works on, and caches a few.
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Protocol

import msgspec
import numpy as np
import pyarrow as pa

from clipmill.metadata.passes import hidden, read_stage
from clipmill.metadata.record import ShardState
from clipmill.metadata.schema import POSITION, REASON, SHARD, UID
from clipmill.metadata.storage import Storage
from clipmill.pipeline.dataset import TableFunction
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.planning.planned import Binding, PlannedStage
from clipmill.pipeline.stage import DatasetStage

WHOLE = 1 << 30  # batch_rows that read a shard as one batch
States = Mapping[str, ShardState]  # of one shard, by stage
BLOCK = 64  # shards, 10 kB as stored; a pool of at most this many is pickled as it is
OFFSET = np.dtype("<i8")


@dataclass(frozen=True)
class StoredColumns:
    """A stage's stored columns, of all shards. Picklable."""

    folder: Storage
    mask_folder: Storage | None = None  # of its `only:` stage
    stage: DatasetStage | None = None  # only if it has virtual columns
    types: Mapping[str, pa.DataType] = field(default_factory=dict)  # of the stored columns

    def read(
        self, state: ShardState, columns: Sequence[str], batch_rows: int
    ) -> Iterator[pa.Table]:
        """Yields columns of one shard, `batch_rows` at a time."""
        return read_stage(self.folder, state, columns, batch_rows, self.mask_folder, self.types)


def stored_columns(stages: Mapping[str, PlannedStage], run: Storage) -> dict[str, StoredColumns]:
    """Returns the stored columns of each stage of a plan."""
    stored = {}
    for name, planned in stages.items():
        mask = run.child(stages[planned.only].folder) if planned.only else None
        stage = planned.stage if isinstance(planned.stage, DatasetStage) else None
        virtual = stage if stage is not None and stage.virtual else None
        columns = (UID, POSITION, REASON, *planned.stage.writes)
        types = {column.name: column.dtype for column in columns}
        stored[name] = StoredColumns(run.child(planned.folder), mask, virtual, types)
    return stored


def read_rows(
    stored: Mapping[str, StoredColumns],
    states: Mapping[str, ShardState],
    bindings: Mapping[str, Binding],
    root: str,
    batch_rows: int,
) -> Iterator[pa.Table]:
    """Yields uid and the bound columns of one shard, each under the name it is read by."""
    read_of: dict[str, dict[str, None]] = {}  # columns to read, by stage
    loaded: dict[str, list[str]] = {}  # virtual columns to load, by stage
    for stage, column in bindings.values():
        source = stored[stage].stage
        if source is not None and column in {virtual.name for virtual in source.virtual}:
            loaded.setdefault(stage, []).append(column)
        else:
            read_of.setdefault(stage, {})[column] = None
    # Every stage stores uids, so read those of a stage whose file is read anyway.
    named = root if root in read_of or not read_of else next(iter(read_of))
    read_of[named] = {UID.name: None, **read_of.get(named, {})}
    virtual = {
        name: hidden(source.load_virtual(names, states[name].source or {}), states[name])
        for name, names in loaded.items()
        if (source := stored[name].stage)  # always true, for the type checker
    }
    readers = {
        stage: stored[stage].read(states[stage], list(columns), batch_rows)
        for stage, columns in read_of.items()
    }
    start = 0
    for tables in zip(*readers.values(), strict=True):
        batch = dict(zip(readers, tables, strict=True))
        rows = len(batch[named])
        columns = {UID.name: batch[named][UID.name]}
        for read, (stage, column) in bindings.items():
            if column in loaded.get(stage, ()):
                columns[read] = virtual[stage][column].slice(start, rows)
            else:
                columns[read] = batch[stage][column]
        yield pa.table(columns)
        start += rows


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
    blocks = []
    for start in range(0, len(states), BLOCK):
        some = [states[shard] for shard in range(start, min(start + BLOCK, len(states)))]
        blocks.append(zlib.compress(json.dumps(msgspec.to_builtins(some)).encode(), 1))
    ends = np.cumsum([len(block) for block in blocks])
    head = OFFSET.itemsize * (len(blocks) + 1)
    return (head + np.append(0, ends)).astype(OFFSET).tobytes() + b"".join(blocks)


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


@dataclass(frozen=True)
class PoolShards:
    """The shards of a root with the columns that a stage reads. Implements `Shards`."""

    stored: Mapping[str, StoredColumns]
    states: ByShard  # in a worker, read on access
    bindings: Mapping[str, Binding]
    root: str
    functions: tuple[TableFunction, ...] = ()

    def __len__(self) -> int:
        return len(self.states)

    def rows(self, index: int) -> int:
        return self.states[index][self.root].rows

    def batches(self, index: int, batch_rows: int = 1024) -> Iterator[pa.Table]:
        if self.functions:
            table = self.table(index)
            for start in range(0, len(table), batch_rows):
                yield table.slice(start, batch_rows)
            return
        start = 0
        for batch in read_rows(
            self.stored, self.states[index], self.bindings, self.root, batch_rows
        ):
            yield with_place(batch, index, start)
            start += len(batch)

    def table(self, index: int) -> pa.Table:
        plain = replace(self, functions=())
        return apply(self.functions, pa.concat_tables(plain.batches(index, WHOLE)))

    def mapped(self, function: TableFunction) -> "PoolShards":
        return replace(self, functions=(*self.functions, function))

    def by_reference(self, folder: Storage, below: str) -> "PoolShards":
        """Returns a copy whose shard states workers read from an object in `folder`/`below`."""
        return replace(self, states=ByReference(self.states, folder, below))

    def digest(self, index: int) -> str:
        """Returns a digest of the shard's sources."""
        states = self.states[index]
        return "-".join(states[stage].digest[:16] for stage in sorted(states))

    def select(self, names: Iterable[str]) -> "PoolShards":
        bound = {name: self.bindings[name] for name in names if name in self.bindings}
        return replace(self, bindings=bound)


@dataclass(frozen=True)
class JoinedShards:
    """Shards of several roots, one after another, as a union or a training reads them."""

    members: tuple[PoolShards, ...]

    def __len__(self) -> int:
        return sum(map(len, self.members))

    def _at(self, index: int) -> tuple[PoolShards, int]:
        for member in self.members:
            if index < len(member):
                return member, index
            index -= len(member)
        raise IndexError(index)

    def rows(self, index: int) -> int:
        member, inner = self._at(index)
        return member.rows(inner)

    def batches(self, index: int, batch_rows: int = 1024) -> Iterator[pa.Table]:
        member, inner = self._at(index)
        yield from member.batches(inner, batch_rows)

    def table(self, index: int) -> pa.Table:
        member, inner = self._at(index)
        return member.table(inner)

    def select(self, names: Iterable[str]) -> "JoinedShards":
        columns = list(names)
        return JoinedShards(tuple(member.select(columns) for member in self.members))

    def by_reference(self, folder: Storage, below: str) -> "JoinedShards":
        return JoinedShards(tuple(member.by_reference(folder, below) for member in self.members))

    def digest(self, index: int) -> str:
        """Returns a digest of the shard's sources."""
        member, inner = self._at(index)
        return member.digest(inner)

    def source(self, index: int) -> str:
        """Returns the name of the root that the shard belongs to."""
        return self._at(index)[0].root


def only(names: tuple[str, ...], table: pa.Table) -> pa.Table:
    """Returns the table's columns of these names."""
    return table.select([name for name in table.column_names if name in names])


def apply(functions: tuple[Callable[[pa.Table], pa.Table], ...], table: pa.Table) -> pa.Table:
    """Applies the functions to the table, one after another."""
    for function in functions:
        table = function(table)
    return table


def with_place(batch: pa.Table, shard: int, start: int) -> pa.Table:
    """Adds each row's shard and position to a batch, after its uid."""
    position = np.arange(start, start + len(batch), dtype=np.int32)
    shards: Any = np.full(len(batch), shard, np.int32)
    return batch.add_column(1, SHARD.name, pa.array(shards)).add_column(
        2, POSITION.name, pa.array(position)
    )
