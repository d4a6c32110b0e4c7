"""Runs units, the pieces of work of a dataset stage's call, in a worker.

Each unit counts its attempts in storage, works, and leaves a small result in the journal.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.fingerprint import digest
from clipmill.metadata.outputs import OUT, note_output
from clipmill.metadata.scratch import leave_shared, scratch_folder
from clipmill.metadata.sealed import put_sealed
from clipmill.metadata.storage import Storage
from clipmill.pipeline.dataset import Put, Task
from clipmill.pipeline.engine import attempts
from clipmill.pipeline.engine.checkpoints import FOLDER as CHECKPOINTS
from clipmill.pipeline.engine.checkpoints import StoredCheckpoints
from clipmill.pipeline.engine.local_shards import mapped
from clipmill.pipeline.engine.once import made_once
from clipmill.pipeline.engine.profiling import profiled_first
from clipmill.pipeline.engine.worker import free_gpu, worker_of
from clipmill.pipeline.errors import ShardError, StageError
from clipmill.pipeline.executors.telling import ProgressReporter
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.run_folder.spent import Spent
from clipmill.pipeline.stage import Worker

Work = Callable[[Any, "UnitTask"], Any]  # input of a unit -> its result
PUT = "#out"  # of a result in the journal: names of the files that the unit put into out/


@dataclass
class Unit:
    """One piece of a call's work. The key changes with the input."""

    key: str
    input: Any
    begun: bool = True  # a worker may have died of it, so its attempts were counted
    ended: str = ""  # why the executor or the kernel ended the last worker on it, if they did
    killed: int = 0  # workers on it that somebody else killed


@dataclass(frozen=True)
class Answer:
    """The outcome of a unit: its result or its error."""

    unit: Unit
    result: Any = None
    error: ShardError | DamagedError | None = None
    spent: Spent = field(default_factory=Spent)

    def result_or_raise(self) -> Any:
        """Returns the result; raises the error, which stops the stage."""
        if isinstance(self.error, DamagedError):
            raise self.error
        if self.error is not None:
            raise StageError(*self.error.args) from self.error
        return self.result


def units_of(inputs: Sequence[Any]) -> list[Unit]:
    """Returns a unit for each input; its key is the input's number and digest."""
    texts = [vars(value) if is_dataclass(value) else value for value in inputs]
    return [
        Unit(f"{index:06d}-{digest(text)[:12]}", value)
        for index, (text, value) in enumerate(zip(texts, inputs, strict=True))
    ]


@dataclass(frozen=True)
class UnitTask:
    """One unit's access to its worker and storage. Implements `Task`."""

    worker: Worker
    folder: Storage
    run: Storage
    journal: str  # name of the journal's folder
    key: str
    page_checksums: bool = True  # in out/
    unchecked: frozenset[int] = frozenset()  # shards recomputed without page checksums, as before
    put: list[str] = field(default_factory=list)  # names of the files in out/ so far

    def put_file(self, name: str, path: Path, sha256: str = "") -> None:
        """Stores a scratch file as `out/<name>` in the stage's folder."""
        with self.folder.scratch(f"{OUT}/{name}") as stored:
            shutil.move(path, stored)  # scratch may be on another disk
            note_output(self.folder, name, stored, sha256)
            self.folder.commit(stored, f"{OUT}/{name}")
        self.put.append(name)

    def checkpoints(self, name: str) -> StoredCheckpoints:
        return StoredCheckpoints(
            self.folder, f"{self.journal}/{CHECKPOINTS}/{name}", self.worker.scratch
        )

    def once(
        self, key: str, make: Callable[[Put], Mapping[str, Any]], prefix: str = ""
    ) -> dict[str, Any]:
        return made_once(self.run, key, make, self.folder, prefix)


@dataclass(frozen=True, kw_only=True)
class Units:
    """A call's work as the executor sends it to workers; each opens it once."""

    planned: PlannedStage
    seed: int
    run_id: str
    run: Storage
    folder: Storage
    journal: str
    work: Work
    local: frozenset[str]  # shared scratch folders of stages that still run
    journalled: bool  # False if the work stores records, which serve as its journal
    page_checksums: bool
    unchecked: frozenset[int]
    profile: PlannedStage | None = None


class UnitsRun:
    """A worker's function of one unit: counts the attempt, works, and stores the result."""

    def __init__(self, units: Units) -> None:
        self.units, self._done = units, 0
        leave_shared(units.local)
        self.scratch = tempfile.TemporaryDirectory(dir=scratch_folder())

    def close(self) -> None:
        self.scratch.cleanup()
        mapped.cache_clear()  # a deleted file that is mapped keeps its room on the disk
        free_gpu([self.units.planned])

    def __call__(self, unit: Unit) -> Answer:
        units = self.units
        reporter = ProgressReporter((units.planned.name,), unit.key)
        scratch = Path(self.scratch.name)
        worker = worker_of(units.planned, units.seed, scratch, units.folder, tell=reporter)
        task = UnitTask(
            worker,
            units.folder,
            units.run,
            units.journal.partition("/")[0],
            unit.key,
            units.page_checksums,
            units.unchecked,
        )
        name = f"{units.journal}/{unit.key}"
        place = f"stage '{units.planned.name}', unit {unit.key}{file_of(unit.input)}"
        spent, work = Spent(), f"{units.journal.rpartition('/')[2]}-{unit.key}"
        try:
            with spent.measured(), profiled_first(units.run, units.profile, work, self._done):
                result = attempts.attempt(
                    partial(self._work, unit, task),
                    units.folder,
                    name,
                    unit.key,
                    units.run_id,
                    place,
                    begun=unit.begun,
                    ended=unit.ended,
                    killed=unit.killed,
                )
        except (ShardError, DamagedError) as error:
            return Answer(unit, error=error)
        finally:
            self._done += 1
            reporter.over()
        return Answer(unit, result, spent=spent)

    def _work(self, unit: Unit, task: UnitTask, number: int) -> Any:
        units = self.units
        result = units.work(unit.input, task)
        if units.journalled:
            result = {**result, PUT: task.put} if task.put else result
            name = f"{units.journal}/{unit.key}.json"
            put_sealed(units.folder, name, result, point="journal", of=unit.key)
        return result


def file_of(value: Any) -> str:
    """Returns `, FILE` of a root's unit or shard, to name it in errors; "" without a single one."""
    source = getattr(value, "source", value)
    source = source if isinstance(source, Mapping) else {}
    images = source.get("images") or []
    path = source.get("path") or (images[0][0] if len(images) == 1 else None)
    return f", {path}" if path else ""


def map_one(fn: Callable[[Any, Task], Mapping[str, Any]], item: Any, task: UnitTask) -> Any:
    """Returns fn of one item: the work of `map`."""
    return dict(fn(item, task))
