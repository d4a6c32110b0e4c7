"""Implements the calls of a dataset stage: run in workers, with results journalled."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from math import isqrt
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.fingerprint import digest
from clipmill.metadata.record import Failure, Record
from clipmill.metadata.scratch import remove_shared, scratch_folder, shared_scratch
from clipmill.metadata.sealed import put_sealed, read_sealed
from clipmill.metadata.stage_seal import SEAL
from clipmill.pipeline.dataset import Rank, State, TableFunction, Task
from clipmill.pipeline.engine import attempts, own_shards, shuffling, states
from clipmill.pipeline.engine.journal import Journal, StageRun
from clipmill.pipeline.engine.launching import launch
from clipmill.pipeline.engine.local_shards import LocalShards, mapped
from clipmill.pipeline.engine.own_shards import Neighbours, OneShard, Together
from clipmill.pipeline.engine.units import Unit, UnitTask, Work, map_one, units_of
from clipmill.pipeline.engine.worker import worker_of
from clipmill.pipeline.errors import ShardError, StageError
from clipmill.pipeline.run_folder.done import standing
from clipmill.pipeline.run_folder.partitions import Partitions
from clipmill.pipeline.run_folder.rows import PoolShards
from clipmill.pipeline.stage import DatasetStage

PARTITION_ROWS = 250_000
LONGER_FROM_ROWS = 2_000_000_000  # in larger pools partitions grow with the square root of rows
LEAST_PARTITIONS = 4


class RunContext:
    """The `Context` of one dataset stage in one run."""

    def __init__(self, run: StageRun) -> None:
        running, planned = run.running, run.planned
        assert isinstance(planned.stage, DatasetStage)
        self.run, self._at_once = run, planned.stage.at_once
        self.calls = Journal(run)
        self.wanted = running.plan.read_of(planned.name)
        self.folder = run.folder.uri
        self.worker = worker_of(planned, running.plan.seed, scratch_folder(), run.folder)
        self.records: dict[int, Record] = {}
        self.failures: dict[int, Failure] = {}
        self.shards = 0
        self._local, self._kept = f"rows-{digest([self.folder, running.run_id])[:16]}", 0

    def close(self) -> None:
        """Deletes the rows that the stage kept on this machine's scratch disk."""
        self.run.running.local.discard(self._local)
        remove_shared(self._local)
        mapped.cache_clear()

    # The calls

    def say(self, words: str) -> None:
        self.calls.words = words

    def map(
        self, fn: Callable[[Any, Task], Mapping[str, Any]], items: Sequence[Any]
    ) -> list[dict[str, Any]]:
        return self.calls.results(self.calls.next_call("map"), partial(map_one, fn), list(items))

    def create_shards(
        self,
        fn: Callable[[dict[str, Any], Task], Iterator[pa.Table]],
        sources: Sequence[dict[str, Any]],
    ) -> None:
        groups = [[source] for source in sources[: self.run.running.most_shards]]
        self.create_shards_together(partial(own_shards.one_by_one, fn), groups)

    def create_shards_together(
        self,
        fn: Callable[[list[dict[str, Any]], Task], Iterator[Iterator[pa.Table]]],
        groups: Sequence[Sequence[dict[str, Any]]],
    ) -> None:
        sources = [source for group in groups for source in group]
        shards = own_shards.from_sources(sources[: self.run.running.most_shards])
        work = partial(own_shards.create, fn, self.run.planned)
        stops = np.cumsum([len(group) for group in groups])
        self._store("shards", work, shards, len(shards), tolerant=True, stops=stops)

    def map_shards(self, fn: TableFunction, over: Any) -> Any:
        return over.mapped(fn)

    def keep_local(self, over: Any) -> LocalShards:
        self.run.running.local.add(self._local)
        shared_scratch(self._local)  # the driver shares it too, as workers come and go
        self._kept += 1
        return LocalShards(over, self._local, self._kept)

    def shuffle(self, over: Any, key: str, partitions: int | None = None) -> Partitions:
        count = partitions or max(LEAST_PARTITIONS, self.partitions(self._home))
        return self._shuffle(over, partial(shuffling.by_hash, key, count), count)

    def partitions(self, over: Any, more: int = 0) -> int:
        rows = sum(over.rows(shard) for shard in range(len(over))) + more
        return -(-rows // partition_rows(rows)) or 1

    def drop(self, shuffled: Any) -> None:
        folder, data = self.run.folder, shuffled.data
        if not folder.has(_dropped(data)):
            folder.put(_dropped(data), b"{}", point="journal")
        folder.delete_folder(data)

    def restore(self, over: Any) -> None:
        home, parents = self._home, self.run.made_of
        if isinstance(over.over if isinstance(over, LocalShards) else over, PoolShards):
            work = partial(own_shards.restore, over, self.run.planned)
            shards = [OneShard(shard, parents) for shard in range(len(over))]
            stops = np.arange(0, len(shards), self._at_once) + self._at_once
            self._store("shards", work, shards, len(shards), stops=stops)
            return
        # Rows return in two steps: to a run of neighbouring shards, then each to its own shard.
        sizes = [home.rows(shard) for shard in range(len(home))]
        runs = own_shards.neighbours(sizes, partition_rows(sum(sizes)), LEAST_PARTITIONS)
        starts = np.array([start for start, _ in runs])
        by_run = self._shuffle(over, partial(shuffling.by_home, starts), len(runs))
        groups = [Neighbours(p, a, sizes[a:b], parents) for p, (a, b) in enumerate(runs)]
        work = partial(own_shards.restore_neighbours, by_run, self.run.planned)
        self._store("restore", work, groups, len(home))

    def reduce(
        self, fn: Callable[[pa.Table], State], over: Any, merge: Callable[[State, State], State]
    ) -> State:
        call, folder = self.calls.next_call("reduce"), self.run.folder
        stored = states.read_state(folder, f"{call}.npz")
        if stored is not None:
            return stored
        work = partial(states.reduce_some, fn, over, merge)
        parts = self._states(call, work, states.spans_of(len(over), self._at_once))
        if not parts:
            raise StageError(
                "no shards to reduce", f"stage '{self.run.planned.name}'", "the pool is empty"
            )
        levels = [call]
        while len(parts) > 1 and sum(part["size"] for part in parts) > states.BY_DRIVER_BYTES:
            levels.append(f"{call}.{len(levels)}")
            files, most = [part["file"] for part in parts], states.MERGED
            groups = [files[start : start + most] for start in range(0, len(files), most)]
            parts = self._states(levels[-1], partial(states.merge_some, merge), groups)
        state = states.merged(folder, merge, [part["file"] for part in parts])
        states.put_state(folder, f"{call}.npz", state, point="journal")
        for level in levels:
            folder.delete_folder(f"{level}.data")
        return state

    def iterate(
        self,
        state: State,
        step: Callable[[State, int], State],
        rounds: int,
        until: Callable[[State], bool] | None = None,
    ) -> State:
        call, folder = self.calls.next_call("iterate"), self.run.folder
        begin = 0
        for entry in folder.entries(call):
            stored = states.read_state(folder, f"{call}/{entry.name}")
            if stored is not None and (number := int(entry.name.removesuffix(".npz"))) > begin:
                begin, state = number, stored
        for number in range(begin, rounds):
            if until is not None and number and until(state):
                break
            with self.calls.round(call, number, rounds):
                state = step(state, number)
            states.put_state(folder, f"{call}/{number + 1:06d}.npz", state, point="step")
            folder.delete(f"{call}/{number:06d}.npz")  # the newest is enough
        return state

    def launch(self, fn: Callable[[Rank, Task], Mapping[str, Any]], workers: int) -> dict[str, Any]:
        call, folder = self.calls.next_call("launch"), self.run.folder
        stored = read_sealed(folder, f"{call}.json")
        if stored is not None:
            return dict(stored)
        run, checked = self.run.running.state.run, self.run.page_checksums
        task = UnitTask(self.worker, folder, run, self.calls.name, call, checked)
        result = launch(self.calls, call, fn, task, workers)
        put_sealed(folder, f"{call}.json", result, point="journal")
        return result

    # Shared by the calls

    @property
    def _home(self) -> PoolShards:
        if self.run.home is None:
            raise StageError(
                "a stage without rows restores none",
                f"stage '{self.run.planned.name}'",
                "use create_shards, or put_file",
            )
        return self.run.home

    def _shuffle(self, over: Any, key: Callable[[pa.Table], Any], count: int) -> Partitions:
        call, folder = self.calls.next_call("shuffle"), self.run.folder
        data = f"{call}.data"
        is_dropped = folder.has(_dropped(data))
        sizes = shuffling.sizes_in(folder, data)
        rows_S = [over.rows(shard) for shard in range(len(over))]
        home = self.run.home
        unknown = partition_rows(sum(map(home.rows, range(len(home)))) if home else 0)
        runs = shuffling.runs_of([unknown if rows < 0 else rows for rows in rows_S])
        most_bytes = shuffling.segment_bytes(self.run.planned.stage.resources.memory_gb)
        results = self.calls.results(
            call,
            partial(shuffling.split_run, over, key, count, data, most_bytes),
            runs,
            lambda result: is_dropped or sizes.get(result["file"]) == result.get("size"),
        )
        index = shuffling.put_index(folder, data, results, count)
        files = tuple(result["file"] for result in results for _ in range(result["segments"]))
        return Partitions(folder, data, files, index, count)

    def _states(
        self, call: str, work: Callable[..., Any], inputs: list[Any]
    ) -> list[dict[str, Any]]:
        """Returns `file` and `size` of the state that the work stored for each input."""
        data = f"{call}.data"
        sizes = shuffling.sizes_in(self.run.folder, data)
        return self.calls.results(
            call,
            partial(work, data),
            inputs,
            lambda result: result.get("size") == sizes.get(result["file"], 0),
        )

    def _store(
        self,
        call: str,
        work: Work,
        inputs: Sequence[OneShard | Neighbours],
        total: int,
        *,
        tolerant: bool = False,
        stops: NDArray[np.integer] | None = None,
    ) -> None:
        """Stores this stage's own shards; shards whose record is good are skipped.

        If tolerant, a shard that fails is set aside and the others go on. The shards between two
        `stops` are one unit; once that fails, each is a unit of its own.
        """
        self.shards = total
        known, running, name = self.run.known, self.run.running, self.run.planned.name
        left = []
        for unit in units_of(inputs):
            shards, parents = unit.input.shards, unit.input.parents
            stored = [known.records.get(shard, []) for shard in shards]
            failure = known.failures.get(shards[0])
            verdicts = {standing(records, failure, parents) for records in stored}
            if verdicts == {"good"}:
                self._note([records[0] for records in stored])
            elif "failed" in verdicts and failure and failure.crashed and not running.crash_ok:
                self.failures[shards[0]] = failure
            else:
                left.append(unit)
        if left:
            self.run.folder.delete(SEAL)
        running.watcher.stage(name, total, len(self.records))
        self.calls.words = ""  # the stage's words do not describe the storing of its shards
        units = left if stops is None else own_shards.together(left, stops)
        alone = {unit.input.shards[0]: unit for unit in left}
        again: list[Unit] = []  # single shards of failed units, filled by the first answers
        answers = partial(self.calls.answers, f"{self.calls.name}/{call}", work)
        count = len(inputs) if stops is None else int(np.searchsorted(stops, len(inputs))) + 1
        for answer in chain(answers(units, count - len(units)), answers(again, count)):
            done = answer.unit.input
            if isinstance(done, Together) and isinstance(answer.error, ShardError):
                again += [alone[one_shard.shard] for one_shard in done.each]
            elif tolerant and isinstance(answer.error, ShardError):
                self._set_aside(done, answer.error)
            else:
                records = answer.result_or_raise()
                self._note(records)
                for record in records:
                    running.watcher.shard(name, record, total)

    def _note(self, records: list[Record]) -> None:
        for record in records:
            self.records[record.shard] = record
            if failure := self.run.known.failures.get(record.shard):
                self.run.folder.delete(failure.name)

    def _set_aside(self, failed: OneShard, error: ShardError) -> None:
        folder, shard = self.run.folder, failed.shard
        if shard in self.run.known.records:  # made from the source's earlier content
            folder.delete(f"{shard:06d}.json")
        self.failures[shard] = attempts.fail(folder, shard, failed.parents, error)


def partition_rows(rows: int) -> int:
    """Returns the rows per partition of a pool with `rows` rows; a worker holds one in memory.

    A shuffle has partitions times runs pieces, so both grow in size with the largest pools.
    """
    return max(PARTITION_ROWS, isqrt(PARTITION_ROWS**2 * rows // LONGER_FROM_ROWS))


def _dropped(data: str) -> str:
    """Returns the name of the marker that a shuffle's files were deleted on purpose."""
    return data.removesuffix(".data") + ".dropped"
