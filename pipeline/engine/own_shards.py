"""A dataset stage's own shards: created from a source, or stored from rows that came home."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.fingerprint import digest
from clipmill.metadata.record import Record
from clipmill.metadata.schema import POSITION, SHARD
from clipmill.metadata.shard import ShardWriter, store
from clipmill.pipeline.dataset import Task
from clipmill.pipeline.engine.declared import as_declared, stored_schema
from clipmill.pipeline.engine.units import Unit, UnitTask
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.run_folder.partitions import Partitions
from clipmill.pipeline.run_folder.rows import PoolShards


@dataclass(frozen=True)
class OneShard:
    """A shard to store: its record names the parents, and the source where a root has one."""

    shard: int
    parents: dict[str, str]
    source: dict[str, Any] | None = None

    @property
    def shards(self) -> range:
        return range(self.shard, self.shard + 1)


@dataclass(frozen=True)
class Together:
    """Shards to store by one unit, one after another."""

    each: tuple[OneShard, ...]


@dataclass(frozen=True)
class Neighbours:
    """Shards to store, from `start` on, whose rows lie in one partition."""

    partition: int
    start: int
    rows: list[int]  # of each shard
    parents: dict[str, str]

    @property
    def shards(self) -> range:
        return range(self.start, self.start + len(self.rows))


def from_sources(sources: Sequence[dict[str, Any]]) -> list[OneShard]:
    """A root's shards: each is of its source, and depends on nothing else."""
    return [
        OneShard(shard, {"source": digest(source)}, source) for shard, source in enumerate(sources)
    ]


def together(units: Sequence[Unit], stops: NDArray[np.integer]) -> list[Unit]:
    """Units of one shard as units of all between two `stops`; one alone stays as it is."""
    joined: list[Unit] = []
    for _, group in groupby(
        units, lambda unit: int(np.searchsorted(stops, unit.input.shard, "right"))
    ):
        each = list(group)
        many = Together(tuple(unit.input for unit in each))
        joined.append(each[0] if len(each) == 1 else Unit(f"{each[0].key}-{len(each)}", many))
    return joined


def neighbours(sizes: list[int], rows: int, least: int) -> list[tuple[int, int]]:
    """First shard and last + 1 of each run of neighbours, which have about `rows` rows together.

    `sizes` are the rows of each shard. There are at least `least` runs where shards allow it.
    """
    most = max(1, min(rows, -(-sum(sizes) // least)))
    runs: list[tuple[int, int]] = []
    start, total = 0, 0
    for index, size in enumerate(sizes):
        if index > start and total + size > most:
            runs.append((start, index))
            start, total = index, 0
        total += size
    if sizes:
        runs.append((start, len(sizes)))
    return runs


def each_of(given: OneShard | Together) -> tuple[OneShard, ...]:
    return given.each if isinstance(given, Together) else (given,)


def create_shard(
    fn: Callable[[dict[str, Any], Task], Iterator[pa.Table]],
    planned: PlannedStage,
    given: OneShard,
    task: UnitTask,
) -> list[Record]:
    assert given.source is not None
    return [store_shard(planned, given, fn(given.source, task), task)]


def create_together(
    fn: Callable[[list[dict[str, Any]], Task], Iterator[Iterator[pa.Table]]],
    planned: PlannedStage,
    given: OneShard | Together,
    task: UnitTask,
) -> list[Record]:
    each = each_of(given)
    streams = fn([dict(one.source or {}) for one in each], task)
    return [store_shard(planned, one, rows, task) for one, rows in zip(each, streams, strict=True)]


def restore_shards(
    over: PoolShards, planned: PlannedStage, given: OneShard | Together, task: UnitTask
) -> list[Record]:
    records = []
    for one in each_of(given):
        table = at_home(over.table(one.shard), one.shard, over.rows(one.shard), planned)
        records.append(store_shard(planned, one, iter([table]), task))
    return records


def restore_neighbours(
    homeward: Partitions, planned: PlannedStage, given: Neighbours, task: UnitTask
) -> list[Record]:
    whole = homeward.table(given.partition)
    whole = whole.sort_by([(SHARD.name, "ascending"), (POSITION.name, "ascending")])
    shards = whole[SHARD.name].to_numpy()
    records = []
    for shard, rows in enumerate(given.rows, start=given.start):
        start, stop = np.searchsorted(shards, [shard, shard + 1])
        table = at_home(whole.slice(start, stop - start), shard, rows, planned)
        records.append(store_shard(planned, OneShard(shard, given.parents), iter([table]), task))
    return records


def at_home(table: pa.Table, shard: int, rows: int, planned: PlannedStage) -> pa.Table:
    """The table; StageError where it is not every row of the shard, in order."""
    place = f"stage '{planned.name}' ({planned.uses}), shard {shard}"
    positions = table[POSITION.name].to_numpy()
    if len(table) != rows or not np.array_equal(positions, np.arange(rows)):
        raise StageError(
            f"{len(table)} rows came home to a shard of {rows}, each due once",
            place,
            "a dataset stage keeps shard and position of every row",
        )
    return table


def store_shard(
    planned: PlannedStage, given: OneShard, tables: Iterator[pa.Table], task: UnitTask
) -> Record:
    """Data and record of one shard; without page checksums where it had none before."""
    began = time.monotonic()
    shard = given.shard
    checked, schema = shard not in task.unchecked, stored_schema(planned.stage)
    with (
        task.folder.scratch(planned.name) as path,
        ShardWriter(path, schema, checked) as writer,
    ):
        for table in tables:
            writer.add(as_declared(planned, table, shard, schema))
        return store(
            task.folder,
            writer,
            path,
            {
                "shard": shard,
                "rows": writer.rows,
                "parents": given.parents,
                "source": given.source,
                "seconds": round(time.monotonic() - began, 3),
            },
        )
