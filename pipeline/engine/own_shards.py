"""Stores a dataset stage's own shards: created from a source, or from rows put back in order."""

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
    """A shard to store, with the parents and, in a root, the source that its record names."""

    shard: int
    parents: dict[str, str]
    source: dict[str, Any] | None = None

    @property
    def shards(self) -> range:
        return range(self.shard, self.shard + 1)


@dataclass(frozen=True)
class Together:
    """Shards that one unit stores, one after another."""

    each: tuple[OneShard, ...]


@dataclass(frozen=True)
class Neighbours:
    """Shards to store, numbered from `start`, whose rows lie in one partition."""

    partition: int
    start: int
    rows: list[int]  # of each shard
    parents: dict[str, str]

    @property
    def shards(self) -> range:
        return range(self.start, self.start + len(self.rows))


def from_sources(sources: Sequence[dict[str, Any]]) -> list[OneShard]:
    """Returns a root's shards, one a source; each depends on its source alone."""
    return [
        OneShard(shard, {"source": digest(source)}, source) for shard, source in enumerate(sources)
    ]


def together(units: Sequence[Unit], stops: NDArray[np.integer]) -> list[Unit]:
    """Joins units of one shard between two `stops` into one unit; a lone unit stays as it is."""
    joined: list[Unit] = []
    for _, group in groupby(
        units, lambda unit: int(np.searchsorted(stops, unit.input.shard, "right"))
    ):
        each = list(group)
        many = Together(tuple(unit.input for unit in each))
        joined.append(each[0] if len(each) == 1 else Unit(f"{each[0].key}-{len(each)}", many))
    return joined


def neighbours(sizes: list[int], rows: int, least: int) -> list[tuple[int, int]]:
    """Returns [start, stop) of runs of neighbouring shards with about `rows` rows each.

    `sizes` are the rows of each shard. There are at least `least` runs if shards allow it.
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


def each_of(shards: OneShard | Together) -> tuple[OneShard, ...]:
    return shards.each if isinstance(shards, Together) else (shards,)


def one_by_one(
    fn: Callable[[dict[str, Any], Task], Iterator[pa.Table]],
    sources: list[dict[str, Any]],
    task: UnitTask,
) -> Iterator[Iterator[pa.Table]]:
    """Yields the rows of each source."""
    return (fn(source, task) for source in sources)


def create(
    fn: Callable[[list[dict[str, Any]], Task], Iterator[Iterator[pa.Table]]],
    planned: PlannedStage,
    shards: OneShard | Together,
    task: UnitTask,
) -> list[Record]:
    each = each_of(shards)
    streams = fn([dict(shard.source or {}) for shard in each], task)
    pairs = zip(each, streams, strict=True)
    return [store_shard(planned, shard, rows, task) for shard, rows in pairs]


def restore(
    over: PoolShards, planned: PlannedStage, shards: OneShard | Together, task: UnitTask
) -> list[Record]:
    records = []
    for item in each_of(shards):
        shard = item.shard
        table = in_order(over.table(shard), shard, over.rows(shard), planned)
        records.append(store_shard(planned, item, iter([table]), task))
    return records


def restore_neighbours(
    by_run: Partitions, planned: PlannedStage, run: Neighbours, task: UnitTask
) -> list[Record]:
    whole = by_run.table(run.partition)
    whole = whole.sort_by([(SHARD.name, "ascending"), (POSITION.name, "ascending")])
    shards = whole[SHARD.name].to_numpy()
    records = []
    for shard, rows in enumerate(run.rows, start=run.start):
        start, stop = np.searchsorted(shards, [shard, shard + 1])
        table = in_order(whole.slice(start, stop - start), shard, rows, planned)
        records.append(store_shard(planned, OneShard(shard, run.parents), iter([table]), task))
    return records


def in_order(table: pa.Table, shard: int, rows: int, planned: PlannedStage) -> pa.Table:
    """Returns the table; raises StageError unless it is every row of the shard, in order."""
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
    planned: PlannedStage, item: OneShard, tables: Iterator[pa.Table], task: UnitTask
) -> Record:
    """Stores data and record of one shard; without page checksums if it had none before."""
    began = time.monotonic()
    shard = item.shard
    checked, schema = shard not in task.unchecked, stored_schema(planned.stage)
    with task.folder.scratch(planned.name) as path, ShardWriter(path, schema, checked) as writer:
        for table in tables:
            writer.add(as_declared(planned, table, shard, schema))
        return store(
            task.folder,
            writer,
            path,
            {
                "shard": shard,
                "rows": writer.rows,
                "parents": item.parents,
                "source": item.source,
                "seconds": round(time.monotonic() - began, 3),
            },
        )
