"""The calls of a dataset stage: journalled, so that a killed stage resumes at the call it was in.

A call is numbered (`02-shuffle`). Each of its units of work, once done, leaves a small result in
`calls-<inputs>/02-shuffle/`; when all are done the call's results become `02-shuffle.json` and the
units go. Run again, a finished call returns at once and an unfinished one does what is missing.
A digest of the inputs is in the folder's name: changed inputs start a new journal.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
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
from pipeline.chain import worker_of
from pipeline.dataset import State, TableFunction, Task
from pipeline.errors import StageError
from pipeline.executors import Executor, Item, Step
from pipeline.planned import PlannedStage
from pipeline.rows import Partitions, PoolShards
from pipeline.states import put_state, read_state
from pipeline.units import (
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

PARTITION_ROWS = 250_000
LEAST_PARTITIONS = 4
REDUCE_UNITS = 256


class RunContext:
    """Implements `Context` for one dataset stage of one run."""

    def __init__(
        self,
        planned: PlannedStage,
        seed: int,
        run_id: str,
        folder: Storage,
        executor: Executor,
        made_of: dict[str, str],
        known: Scan,
        retry: tuple[str, ...],
        on_shard: Callable[[Record, int], None],
        on_unit: Callable[[str, int, int], None],
        home: PoolShards | None,
        page_checksums: bool,
        wanted: frozenset[str],
    ) -> None:
        self.planned = planned
        self.wanted = wanted
        self.folder = folder.uri
        self.records: dict[int, Record] = {}
        self.failures: dict[int, Failure] = {}
        self.shards = 0
        self.worker = worker_of(planned, seed, scratch_folder(), folder)
        self._seed = seed
        self._run_id = run_id
        self._storage = folder
        self._executor = executor
        self._made_of = made_of
        self._known = known
        self._retry = retry
        self._on_shard = on_shard
        self._on_unit = on_unit
        self._rows = home
        self.page_checksums = page_checksums
        # Whose hashes and formats a journal holds.
        versions = f"{pa.__version__} {version('polars')}"
        key = digest([*made_of.values(), versions])[:12]
        self.journal = "calls" if planned.is_root else f"calls-{key}"
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
        work = partial(create_shard, fn, self.planned)
        parents = [{"source": digest(source)} for source in sources]
        units = [
            {"shard": shard, "parents": parents[shard], "source": source}
            for shard, source in enumerate(sources)
        ]
        self._store_shards(work, units, tolerant=True)

    def map_shards(self, fn: TableFunction, over: Any) -> Any:
        return over.mapped(fn)

    def shuffle(self, over: Any, key: str, partitions: int | None = None) -> Partitions:
        count = partitions or self._partitions()
        return self._shuffle(over, partial(by_hash, key, count), count)

    def drop(self, shuffled: Any) -> None:
        for folder in {file.rpartition("/")[0] for file, _ in shuffled.pieces}:
            if not self._storage.has(_dropped(folder)):
                self._storage.put(_dropped(folder), b"{}", point="journal")
            self._storage.delete_folder(folder)

    def restore(self, over: Any) -> None:
        home: PoolShards = self._home
        parents = self._made_of
        if isinstance(over, PoolShards):
            work = partial(restore_shard, over, self.planned)
            units = [{"shard": shard, "parents": parents} for shard in range(len(over))]
            self._store_shards(work, units, tolerant=False)
            return
        # Rows go home in two steps: to a group of neighbouring shards, then each to its own.
        sizes = [home.rows(shard) for shard in range(len(home))]
        groups = groups_of_shards(sizes, PARTITION_ROWS, LEAST_PARTITIONS)
        starts = np.array([start for start, _ in groups])
        homeward = self._shuffle(over, partial(by_home, starts), len(groups))
        work = partial(restore_group, homeward, self.planned)
        units = [
            {"group": g, "start": a, "rows": sizes[a:b], "parents": parents}
            for g, (a, b) in enumerate(groups)
        ]
        done = [self._done(shard, parents) for shard in range(len(home))]
        for _g, (a, b) in enumerate(groups):
            if all(done[a:b]):
                self._note([self._known.records[s][0] for s in range(a, b)], len(home))
        left = [u for u, (a, b) in zip(units, groups, strict=True) if not all(done[a:b])]
        self.shards = len(home)
        for item in self._stream("restore", work, left, _keys(left), journalled=False):
            self._raise(item)
            self._note([Record(**text) for text in item["result"]["records"]], len(home))

    def reduce(
        self,
        fn: Callable[[pa.Table], State],
        over: Any,
        merge: Callable[[State, State], State],
    ) -> State:
        call = self._number("reduce")
        name = f"{self.journal}/{call}.npz"
        held = read_state(self._storage, name)
        if held is not None:
            return held
        size = -(-len(over) // REDUCE_UNITS) or 1
        units = [[a, min(a + size, len(over))] for a in range(0, len(over), size)]
        work = partial(reduce_some, fn, over, merge, f"{self.journal}/{call}.data")
        results = self._units(call, work, units, self._is_state)
        if not results:
            raise StageError(
                "no shards to reduce",
                f"stage '{self.planned.name}'",
                "the pool is empty",
            )
        state = functools.reduce(merge, (self._state(result["file"]) for result in results))
        put_state(self._storage, name, state, point="journal")
        self._storage.delete_folder(f"{self.journal}/{call}.data")
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
        for entry in self._storage.entries(f"{self.journal}/{call}"):
            number = int(entry.name.removesuffix(".npz"))
            held = read_state(self._storage, f"{self.journal}/{call}/{entry.name}")
            if held is not None and number > begin:
                begin, state = number, held
        prefix, count = self._prefix, self._count
        for number in range(begin, rounds):
            if until is not None and number and until(state):
                break
            self._prefix, self._count = f"{call}.{number:04d}.", 0
            state = step(state, number)
            name = f"{self.journal}/{call}/{number + 1:06d}.npz"
            put_state(self._storage, name, state, point="step")
            self._storage.delete(f"{self.journal}/{call}/{number:06d}.npz")  # the newest is enough
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
        held = read_sealed(self._storage, name)
        if held is not None:
            return dict(held)
        task = UnitTask(self.worker, self._storage, self.journal, call, self.page_checksums)
        resources = replace(self.planned.stage.resources, gpus=gpus)
        results = self._executor.launch(partial(launched, fn, task), workers, resources)
        put_sealed(self._storage, name, dict(results[0]), point="journal")
        return dict(results[0])

    # Behind them

    @property
    def _home(self) -> PoolShards:
        if self._rows is None:
            raise StageError(
                "a stage without rows restores none",
                f"stage '{self.planned.name}'",
                "use create_shards, or put_file",
            )
        return self._rows

    def _number(self, kind: str) -> str:
        self._count += 1
        return f"{self._prefix}{self._count:02d}-{kind}"

    def _partitions(self) -> int:
        rows = sum(self._home.rows(shard) for shard in range(len(self._home)))
        return max(LEAST_PARTITIONS, -(-rows // PARTITION_ROWS))

    def _shuffle(self, over: Any, key: Callable[[pa.Table], Any], count: int) -> Partitions:
        call = self._number("shuffle")
        data = f"{self.journal}/{call}.data"
        is_dropped = self._storage.has(_dropped(data))
        sizes = {f"{data}/{entry.name}": entry.size for entry in self._storage.entries(data)}
        results = self._units(
            call,
            partial(split_shard, over, key, count, data),
            list(range(len(over))),
            lambda result: is_dropped or sizes.get(result["file"]) == result["offsets"][-1],
        )
        pieces = tuple((result["file"], tuple(result["offsets"])) for result in results)
        return Partitions(self._storage, pieces, count)

    def _is_state(self, result: dict[str, Any]) -> bool:
        return read_state(self._storage, result["file"]) is not None

    def _state(self, name: str) -> State:
        state = read_state(self._storage, name)
        if state is None:
            raise StageError("a damaged state", f"{self._storage}/{name}", "run again")
        return state

    def _units(
        self,
        call: str,
        work: Work,
        units: list[Any],
        is_whole: Callable[[dict[str, Any]], bool] = lambda result: True,
    ) -> list[dict[str, Any]]:
        """The result of every unit, from the journal where it and what it names are there."""
        keys = _keys(units)
        held = read_sealed(self._storage, f"{self.journal}/{call}.json")
        done = {key: result for key, result in (held or {}).items() if is_whole(result)}
        if not done.keys() >= set(keys):
            there = {entry.name for entry in self._storage.entries(f"{self.journal}/{call}")}
            for key in keys:
                if f"{key}.json" in there:
                    result = read_sealed(self._storage, f"{self.journal}/{call}/{key}.json")
                    done |= {key: result} if result is not None and is_whole(result) else {}
        left = [i for i, key in enumerate(keys) if key not in done]
        todo = [units[i] for i in left]
        for item in self._stream(call, work, todo, [keys[i] for i in left], journalled=True):
            self._raise(item)
            done[item["key"]] = item["result"]
        if held is None or left:
            results = {key: done[key] for key in keys}
            put_sealed(self._storage, f"{self.journal}/{call}.json", results, point="journal")
            self._storage.delete_folder(f"{self.journal}/{call}")
        return [done[key] for key in keys]

    def _store_shards(self, work: Work, units: list[dict[str, Any]], tolerant: bool) -> None:
        """Stores this stage's own shards; those whose record is good are left alone."""
        self.shards = len(units)
        left = []
        for unit in units:
            shard, parents = unit["shard"], unit["parents"]
            failure = self._known.failures.get(shard)
            if self._done(shard, parents):
                self._note([self._known.records[shard][0]], len(units))
            elif failure and failure.crashed and failure.parents == parents and not self._crash_ok:
                self.failures[shard] = failure
            else:
                left.append(unit)
        for item in self._stream("shards", work, left, _keys(left), journalled=False):
            shard = item["unit"]["shard"]
            if "error" not in item:
                self._note([Record(**item["result"]["record"])], len(units))
                if shard in self._known.failures:
                    self._storage.delete(self._known.failures[shard].name)
                continue
            if not tolerant or isinstance(item["error"], DamagedError):
                self._raise(item)
            if shard in self._known.records:  # of what the source held before
                self._storage.delete(f"{shard:06d}.json")
            self.failures[shard] = attempts.fail(
                self._storage,
                shard,
                item["unit"]["parents"],
                item["error"],
                item["crashed"],
            )

    @property
    def _crash_ok(self) -> bool:
        return "crashed" in self._retry

    def _stream(
        self,
        call: str,
        work: Work,
        units: list[Any],
        keys: list[str],
        *,
        journalled: bool,
    ) -> Iterator[Item]:
        if not units:
            return
        step = Step(
            name=f"{self.planned.name} {call}",
            start=Units(
                planned=self.planned,
                seed=self._seed,
                run_id=self._run_id,
                folder=self._storage,
                journal=f"{self.journal}/{call}",
                work=work,
                journalled=journalled,
                page_checksums=self.page_checksums,
                unchecked=self._known.unchecked,
            ),
            resources=self.planned.stage.resources,
        )
        items = [{"key": key, "unit": unit} for key, unit in zip(keys, units, strict=True)]
        for number, item in enumerate(self._executor.stream([step], items), start=1):
            self._on_unit(call, number, len(items))
            yield item

    def _done(self, shard: int, parents: dict[str, str]) -> bool:
        records = self._known.records.get(shard, [])
        return bool(records) and records[0].parents == parents

    def _note(self, records: list[Record], total: int) -> None:
        for record in records:
            self.records[record.shard] = record
            self._on_shard(record, total)

    def _raise(self, item: Item) -> None:
        if "error" not in item:
            return
        if isinstance(item["error"], DamagedError):
            raise item["error"]
        raise StageError(*item["error"].args) from item["error"]


def _dropped(data: str) -> str:
    """The object that says that a shuffle's files are gone as they should be."""
    return data.removesuffix(".data") + ".dropped"


def _keys(units: list[Any]) -> list[str]:
    """A name for each unit that changes with what is in it."""
    return [f"{index:06d}-{digest(unit)[:12]}" for index, unit in enumerate(units)]
