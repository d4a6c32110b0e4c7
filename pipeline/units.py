"""The units of work that a dataset stage's calls are made of: what a worker runs.

Each unit counts its attempt in storage, works, and leaves a small result in the journal.
"""

import itertools
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from metadata.damage import DamagedError
from metadata.outputs import OUT, note_output
from metadata.record import Record
from metadata.schema import POSITION, SHARD
from metadata.scratch import scratch_folder
from metadata.sealed import put_sealed
from metadata.shard import ShardWriter, store
from metadata.storage import Storage
from pipeline import attempts
from pipeline.dataset import State, Task
from pipeline.declared import as_declared, stored_schema
from pipeline.errors import ShardError, StageError
from pipeline.planned import PlannedStage
from pipeline.rows import Partitions, PoolShards
from pipeline.stage import Worker
from pipeline.states import put_state
from pipeline.worker import worker_of

Work = Callable[[Any, "UnitTask"], Any]


@dataclass(frozen=True)
class Unit:
    """One piece of a call's work. The key changes with the input."""

    key: str
    input: Any


@dataclass(frozen=True)
class Answer:
    """What became of a unit: the result of its work, or why there is none."""

    unit: Unit
    result: Any = None
    error: ShardError | DamagedError | None = None


@dataclass(frozen=True)
class ShardInput:
    """A shard to store: the record names the parents, and the source where a root has one."""

    shard: int
    parents: dict[str, str]
    source: dict[str, Any] | None = None


@dataclass(frozen=True)
class GroupInput:
    """Neighbouring shards to store, from `start` on, whose rows lie in one partition."""

    partition: int
    start: int
    rows: list[int]  # of each shard
    parents: dict[str, str]


@dataclass(frozen=True)
class UnitTask:
    """Where one unit of work runs. Implements `Task`."""

    worker: Worker
    folder: Storage
    journal: str
    key: str
    page_checksums: bool = True  # in out/
    unchecked: frozenset[int] = frozenset()  # shards that are made again, as they were: without

    def put_file(self, name: str, path: Path) -> None:
        """Stores a scratch file as `out/<name>` in the stage's folder."""
        with self.folder.scratch(f"{OUT}/{name}") as held:
            shutil.move(path, held)  # scratch may be another disk
            note_output(self.folder, name, held)
            self.folder.commit(held, f"{OUT}/{name}")


@dataclass(frozen=True, kw_only=True)
class Units:
    """A call's work, opened once per worker: what the executor carries."""

    planned: PlannedStage
    seed: int
    run_id: str
    folder: Storage
    journal: str
    work: Work
    journalled: bool  # false where the work stores records: they are its journal
    page_checksums: bool
    unchecked: frozenset[int]

    def __call__(self) -> "UnitsRun":
        return UnitsRun(self)


class UnitsRun:
    """Does one unit: counts the attempt, works, and leaves the result in the journal."""

    def __init__(self, units: Units) -> None:
        self.units = units
        self.scratch = tempfile.TemporaryDirectory(dir=scratch_folder())

    def __call__(self, unit: Unit) -> Answer:
        units = self.units
        worker = worker_of(units.planned, units.seed, Path(self.scratch.name), units.folder)
        task = UnitTask(
            worker,
            units.folder,
            units.journal,
            unit.key,
            units.page_checksums,
            units.unchecked,
        )
        name = f"{units.journal}/{unit.key}"
        place = f"stage '{units.planned.name}', unit {unit.key}"
        try:
            result = attempts.attempt(
                partial(self._work, unit, task), units.folder, name, unit.key, units.run_id, place
            )
        except (ShardError, DamagedError) as error:
            return Answer(unit, error=error)
        return Answer(unit, result)

    def _work(self, unit: Unit, task: UnitTask, number: int) -> Any:
        units = self.units
        result = units.work(unit.input, task)
        if units.journalled:
            name = f"{units.journal}/{unit.key}.json"
            put_sealed(units.folder, name, result, point="journal")
        return result


def map_one(fn: Callable[[Any, Task], Mapping[str, Any]], unit: Any, task: UnitTask) -> Any:
    return dict(fn(unit, task))


def launched(fn: Callable[[int, int, Task], Any], task: UnitTask, rank: int, of: int) -> Any:
    with tempfile.TemporaryDirectory(dir=scratch_folder()) as scratch:
        worker = replace(task.worker, scratch=Path(scratch))
        return fn(rank, of, replace(task, worker=worker))


def create_shard(
    fn: Callable[[dict[str, Any], Task], Iterator[pa.Table]],
    planned: PlannedStage,
    given: ShardInput,
    task: UnitTask,
) -> list[Record]:
    assert given.source is not None
    return [store_shard(planned, given, fn(given.source, task), task)]


def restore_shard(
    over: PoolShards, planned: PlannedStage, given: ShardInput, task: UnitTask
) -> list[Record]:
    shard = given.shard
    table = at_home(over.table(shard), shard, over.rows(shard), planned)
    return [store_shard(planned, given, iter([table]), task)]


def restore_group(
    homeward: Partitions, planned: PlannedStage, given: GroupInput, task: UnitTask
) -> list[Record]:
    whole = homeward.table(given.partition)
    whole = whole.sort_by([(SHARD.name, "ascending"), (POSITION.name, "ascending")])
    shards = whole[SHARD.name].to_numpy()
    records = []
    for shard, rows in enumerate(given.rows, start=given.start):
        start, stop = np.searchsorted(shards, [shard, shard + 1])
        table = at_home(whole.slice(start, stop - start), shard, rows, planned)
        records.append(store_shard(planned, ShardInput(shard, given.parents), iter([table]), task))
    return records


def at_home(table: pa.Table, shard: int, rows: int, planned: PlannedStage) -> pa.Table:
    """The table, if it is the shard's rows in their order; StageError where one is not."""
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
    planned: PlannedStage, given: ShardInput, tables: Iterator[pa.Table], task: UnitTask
) -> Record:
    began = time.monotonic()
    shard = given.shard
    checked = shard not in task.unchecked
    with (
        task.folder.scratch(planned.name) as path,
        ShardWriter(path, stored_schema(planned.stage), checked) as writer,
    ):
        for table in tables:
            writer.add(as_declared(planned, table, shard))
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


def split_shard(
    over: Any,
    key: Callable[[pa.Table], Any],
    count: int,
    data: str,
    index: int,
    task: UnitTask,
) -> dict[str, Any]:
    """One shard's rows by partition, as one file of `count` Arrow streams."""
    table = over.table(index)
    partition = key(table)
    # Numbers of 16 bits are sorted by radix: 8 times as fast as those of 64.
    order = np.argsort(partition.astype(np.min_scalar_type(count)), kind="stable")
    bounds = np.append(0, np.bincount(partition, minlength=count).cumsum())
    table = table.take(pa.array(order)).unify_dictionaries().combine_chunks()
    options = pa.ipc.IpcWriteOptions(compression="lz4", unify_dictionaries=True)
    offsets = [0]
    name = f"{data}/{task.key}.arrows"
    with task.folder.scratch(name) as path:
        with path.open("wb") as file:
            for start, stop in itertools.pairwise(bounds):
                with pa.ipc.new_stream(file, table.schema, options=options) as writer:
                    writer.write_table(table.slice(start, stop - start))
                offsets.append(file.tell())
        task.folder.commit(path, name)
    return {"file": name, "offsets": offsets}


def by_hash(key: str, count: int, table: pa.Table) -> Any:
    """The partition of each row: equal keys get the same one, and so do all nulls."""
    import polars as pl  # late, as in stages: a plan needs none

    hashes = pl.DataFrame(table.select([key])).to_series().hash(seed=0)
    return (hashes % count).to_numpy().astype(np.int64)


def by_home(starts: Any, table: pa.Table) -> Any:
    """The group of shards each row goes home to."""
    return np.searchsorted(starts, table[SHARD.name].to_numpy(), side="right") - 1


def reduce_some(
    fn: Callable[[pa.Table], State],
    over: Any,
    merge: Callable[[State, State], State],
    data: str,
    span: list[int],
    task: UnitTask,
) -> dict[str, Any]:
    state: State | None = None
    for index in range(*span):
        part = fn(over.table(index))
        state = part if state is None else merge(state, part)
    assert state is not None
    name = f"{data}/{task.key}.npz"
    put_state(task.folder, name, state, point="rename")
    return {"file": name}


def groups_of_shards(sizes: list[int], rows: int, least: int) -> list[tuple[int, int]]:
    """Runs of neighbouring shards of about `rows` rows, at least `least` runs where they allow."""
    most = max(1, min(rows, -(-sum(sizes) // least)))
    groups: list[tuple[int, int]] = []
    start, held = 0, 0
    for index, size in enumerate(sizes):
        if index > start and held + size > most:
            groups.append((start, index))
            start, held = index, 0
        held += size
    if sizes:
        groups.append((start, len(sizes)))
    return groups
