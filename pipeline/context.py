"""The calls of a dataset stage: journalled, so that a killed stage resumes at the call it was in.

A call is numbered (`02-shuffle`). Each of its units of work, once done, leaves a small result in
`calls-<inputs>/02-shuffle/`; when all are done the call's results become `02-shuffle.json` and the
units go. Run again, a finished call returns at once and an unfinished one does what is missing.
A digest of the inputs is in the folder's name: changed inputs start a new journal.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa

from metadata.damage import DamagedError
from metadata.fingerprint import digest
from metadata.record import Failure, Record, Scan
from metadata.scratch import scratch_folder
from metadata.sealed import put_sealed, read_sealed
from metadata.storage import Storage
from pipeline import attempts
from pipeline.dataset import State, TableFunction, Task
from pipeline.done import standing
from pipeline.errors import StageError
from pipeline.executors import Executor, Step
from pipeline.planned import PlannedStage
from pipeline.rows import Partitions, PoolShards
from pipeline.states import put_state, read_state
from pipeline.units import (
    Answer,
    GroupInput,
    ShardInput,
    Unit,
    Units,
    UnitTask,
    Work,
    by_hash,
    by_home,
    create_shard,
    groups_of_shards,
    launched,
    map_one,
    reduce_some,
    restore_group,
    restore_shard,
    split_shard,
)
from pipeline.worker import worker_of

PARTITION_ROWS = 250_000
LEAST_PARTITIONS = 4
REDUCE_UNITS = 256


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """One dataset stage in one run: what its calls work with, and whom they tell."""

    planned: PlannedStage
    seed: int
    run_id: str
    folder: Storage
    executor: Executor
    made_of: dict[str, str]  # parents of the records it stores
    known: Scan
    crash_ok: bool  # shards that ended their worker are tried again
    home: PoolShards | None  # the rows it reads; None where it has none of one root
    page_checksums: bool
    wanted: frozenset[str]
    on_shard: Callable[[Record, int], None]
    on_unit: Callable[[str, int, int], None]


class RunContext:
    """Implements `Context` for one dataset stage of one run."""

    def __init__(self, run: StageRun) -> None:
        self.run = run
        self.wanted = run.wanted
        self.folder = run.folder.uri
        self.page_checksums = run.page_checksums
        self.worker = worker_of(run.planned, run.seed, scratch_folder(), run.folder)
        self.records: dict[int, Record] = {}
        self.failures: dict[int, Failure] = {}
        self.shards = 0
        # Whose hashes and formats a journal holds.
        versions = f"{pa.__version__} {version('polars')}"
        key = digest([*run.made_of.values(), versions])[:12]
        self.journal = "calls" if run.planned.is_root else f"calls-{key}"
        self._prefix = ""
        self._count = 0

    # The calls

    def map(
        self, fn: Callable[[Any, Task], Mapping[str, Any]], items: Sequence[Any]
    ) -> list[dict[str, Any]]:
        return self._units(self._number("map"), partial(map_one, fn), list(items))

    def create_shards(
        self,
        fn: Callable[[dict[str, Any], Task], Iterator[pa.Table]],
        sources: Sequence[dict[str, Any]],
    ) -> None:
        work = partial(create_shard, fn, self.run.planned)
        shards = [
            ShardInput(shard, {"source": digest(source)}, source)
            for shard, source in enumerate(sources)
        ]
        self._store_shards(work, shards, tolerant=True)

    def map_shards(self, fn: TableFunction, over: Any) -> Any:
        return over.mapped(fn)

    def shuffle(self, over: Any, key: str, partitions: int | None = None) -> Partitions:
        count = partitions or max(LEAST_PARTITIONS, self.partitions(self._home))
        return self._shuffle(over, partial(by_hash, key, count), count)

    def partitions(self, over: Any, more: int = 0) -> int:
        rows = sum(over.rows(shard) for shard in range(len(over))) + more
        return -(-rows // PARTITION_ROWS) or 1

    def drop(self, shuffled: Any) -> None:
        for folder in {file.rpartition("/")[0] for file, _ in shuffled.pieces}:
            if not self.run.folder.has(_dropped(folder)):
                self.run.folder.put(_dropped(folder), b"{}", point="journal")
            self.run.folder.delete_folder(folder)

    def restore(self, over: Any) -> None:
        home: PoolShards = self._home
        parents = self.run.made_of
        if isinstance(over, PoolShards):
            work = partial(restore_shard, over, self.run.planned)
            shards = [ShardInput(shard, parents) for shard in range(len(over))]
            self._store_shards(work, shards, tolerant=False)
            return
        # Rows go home in two steps: to a group of neighbouring shards, then each to its own.
        sizes = [home.rows(shard) for shard in range(len(home))]
        groups = groups_of_shards(sizes, PARTITION_ROWS, LEAST_PARTITIONS)
        starts = np.array([start for start, _ in groups])
        homeward = self._shuffle(over, partial(by_home, starts), len(groups))
        work = partial(restore_group, homeward, self.run.planned)
        units = _keyed([GroupInput(g, a, sizes[a:b], parents) for g, (a, b) in enumerate(groups)])
        self.shards = len(home)
        left = []
        for unit, (a, b) in zip(units, groups, strict=True):
            stored = [self.run.known.records.get(shard, []) for shard in range(a, b)]
            if all(standing(records, None, parents) == "good" for records in stored):
                self._note([record for records in stored for record in records])
            else:
                left.append(unit)
        for answer in self._stream("restore", work, left, journalled=False):
            self._note(_result(answer))

    def reduce(
        self,
        fn: Callable[[pa.Table], State],
        over: Any,
        merge: Callable[[State, State], State],
    ) -> State:
        call = self._number("reduce")
        name = f"{self.journal}/{call}.npz"
        held = read_state(self.run.folder, name)
        if held is not None:
            return held
        size = -(-len(over) // REDUCE_UNITS) or 1
        units = [[a, min(a + size, len(over))] for a in range(0, len(over), size)]
        work = partial(reduce_some, fn, over, merge, f"{self.journal}/{call}.data")
        results = self._units(call, work, units, self._is_state)
        if not results:
            raise StageError(
                "no shards to reduce",
                f"stage '{self.run.planned.name}'",
                "the pool is empty",
            )
        state = functools.reduce(merge, (self._state(result["file"]) for result in results))
        put_state(self.run.folder, name, state, point="journal")
        self.run.folder.delete_folder(f"{self.journal}/{call}.data")
        return state

    def iterate(
        self,
        state: State,
        step: Callable[[State, int], State],
        rounds: int,
        until: Callable[[State], bool] | None = None,
    ) -> State:
        call = self._number("iterate")
        begin = 0
        for entry in self.run.folder.entries(f"{self.journal}/{call}"):
            number = int(entry.name.removesuffix(".npz"))
            held = read_state(self.run.folder, f"{self.journal}/{call}/{entry.name}")
            if held is not None and number > begin:
                begin, state = number, held
        prefix, count = self._prefix, self._count
        for number in range(begin, rounds):
            if until is not None and number and until(state):
                break
            self._prefix, self._count = f"{call}.{number:04d}.", 0
            state = step(state, number)
            name = f"{self.journal}/{call}/{number + 1:06d}.npz"
            put_state(self.run.folder, name, state, point="step")
            older = f"{self.journal}/{call}/{number:06d}.npz"  # the newest is enough
            self.run.folder.delete(older)
        self._prefix, self._count = prefix, count
        return state

    def launch(
        self,
        fn: Callable[[int, int, Task], Mapping[str, Any]],
        workers: int,
        gpus: float = 0,
    ) -> dict[str, Any]:
        call = self._number("launch")
        name = f"{self.journal}/{call}.json"
        held = read_sealed(self.run.folder, name)
        if held is not None:
            return dict(held)
        task = UnitTask(self.worker, self.run.folder, self.journal, call, self.page_checksums)
        resources = replace(self.run.planned.stage.resources, gpus=gpus)
        results = self.run.executor.launch(partial(launched, fn, task), workers, resources)
        put_sealed(self.run.folder, name, dict(results[0]), point="journal")
        return dict(results[0])

    # Behind them

    @property
    def _home(self) -> PoolShards:
        if self.run.home is None:
            raise StageError(
                "a stage without rows restores none",
                f"stage '{self.run.planned.name}'",
                "use create_shards, or put_file",
            )
        return self.run.home

    def _number(self, kind: str) -> str:
        self._count += 1
        return f"{self._prefix}{self._count:02d}-{kind}"

    def _shuffle(self, over: Any, key: Callable[[pa.Table], Any], count: int) -> Partitions:
        call = self._number("shuffle")
        data = f"{self.journal}/{call}.data"
        is_dropped = self.run.folder.has(_dropped(data))
        sizes = {f"{data}/{entry.name}": entry.size for entry in self.run.folder.entries(data)}
        results = self._units(
            call,
            partial(split_shard, over, key, count, data),
            list(range(len(over))),
            lambda result: is_dropped or sizes.get(result["file"]) == result["offsets"][-1],
        )
        pieces = tuple((result["file"], tuple(result["offsets"])) for result in results)
        return Partitions(self.run.folder, pieces, count)

    def _is_state(self, result: dict[str, Any]) -> bool:
        return read_state(self.run.folder, result["file"]) is not None

    def _state(self, name: str) -> State:
        state = read_state(self.run.folder, name)
        if state is None:
            raise StageError("a damaged state", f"{self.run.folder}/{name}", "run again")
        return state

    def _units(
        self,
        call: str,
        work: Work,
        inputs: list[Any],
        is_whole: Callable[[dict[str, Any]], bool] = lambda result: True,
    ) -> list[dict[str, Any]]:
        """The result of every unit, from the journal where it and what it names are there."""
        units = _keyed(inputs)
        held = read_sealed(self.run.folder, f"{self.journal}/{call}.json")
        done = {key: result for key, result in (held or {}).items() if is_whole(result)}
        if any(unit.key not in done for unit in units):
            there = {entry.name for entry in self.run.folder.entries(f"{self.journal}/{call}")}
            for key in (unit.key for unit in units if f"{unit.key}.json" in there):
                result = read_sealed(self.run.folder, f"{self.journal}/{call}/{key}.json")
                done |= {key: result} if result is not None and is_whole(result) else {}
        left = [unit for unit in units if unit.key not in done]
        for answer in self._stream(call, work, left, journalled=True):
            done[answer.unit.key] = _result(answer)
        results = {unit.key: done[unit.key] for unit in units}
        if held is None or left:
            put_sealed(self.run.folder, f"{self.journal}/{call}.json", results, point="journal")
            self.run.folder.delete_folder(f"{self.journal}/{call}")
        return list(results.values())

    def _store_shards(self, work: Work, shards: list[ShardInput], tolerant: bool) -> None:
        """Stores this stage's own shards; those whose record is good are left alone."""
        self.shards = len(shards)
        known, folder = self.run.known, self.run.folder
        left = []
        for unit in _keyed(shards):
            shard, parents = unit.input.shard, unit.input.parents
            failure = known.failures.get(shard)
            found = standing(known.records.get(shard, []), failure, parents)
            if found == "good":
                self._note([known.records[shard][0]])
            elif found == "failed" and failure and failure.crashed and not self.run.crash_ok:
                self.failures[shard] = failure
            else:
                left.append(unit)
        for answer in self._stream("shards", work, left, journalled=False):
            shard, error = answer.unit.input.shard, answer.error
            if error is None or isinstance(error, DamagedError) or not tolerant:
                self._note(_result(answer))
                if shard in known.failures:
                    folder.delete(known.failures[shard].name)
                continue
            if shard in known.records:  # of what the source held before
                folder.delete(f"{shard:06d}.json")
            self.failures[shard] = attempts.fail(folder, shard, answer.unit.input.parents, error)

    def _stream(
        self,
        call: str,
        work: Work,
        units: list[Unit],
        *,
        journalled: bool,
    ) -> Iterator[Answer]:
        if not units:
            return
        step = Step(
            name=f"{self.run.planned.name} {call}",
            start=Units(
                planned=self.run.planned,
                seed=self.run.seed,
                run_id=self.run.run_id,
                folder=self.run.folder,
                journal=f"{self.journal}/{call}",
                work=work,
                journalled=journalled,
                page_checksums=self.page_checksums,
                unchecked=self.run.known.unchecked,
            ),
            resources=self.run.planned.stage.resources,
        )
        for number, answer in enumerate(self.run.executor.stream([step], units), start=1):
            self.run.on_unit(call, number, len(units))
            yield answer

    def _note(self, records: list[Record]) -> None:
        for record in records:
            self.records[record.shard] = record
            self.run.on_shard(record, self.shards)


def _result(answer: Answer) -> Any:
    """What the work gave; its error, which stops the stage, is raised."""
    if isinstance(answer.error, DamagedError):
        raise answer.error
    if answer.error is not None:
        raise StageError(*answer.error.args) from answer.error
    return answer.result


def _dropped(data: str) -> str:
    """The object that says that a shuffle's files are gone as they should be."""
    return data.removesuffix(".data") + ".dropped"


def _keyed(inputs: Sequence[Any]) -> list[Unit]:
    """A unit for each input, its key number and digest of what is in it."""
    texts = [vars(given) if is_dataclass(given) else given for given in inputs]
    return [
        Unit(f"{index:06d}-{digest(text)[:12]}", given)
        for index, (text, given) in enumerate(zip(texts, inputs, strict=True))
    ]
