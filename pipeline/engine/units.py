"""Units: the pieces of work that a call of a dataset stage is made of, and how a worker does one.

Each unit counts its attempts in storage, works, and leaves a small result in the journal.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
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
from clipmill.pipeline.engine.worker import free_gpu, worker_of
from clipmill.pipeline.errors import ShardError, StageError
from clipmill.pipeline.executors.telling import Teller
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.stage import Worker

Work = Callable[[Any, "UnitTask"], Any]  # from the input of a unit to its result


@dataclass
class Unit:
    """One piece of a call's work. The key changes with the input."""

    key: str
    input: Any
    begun: bool = True  # a worker may have died of it: its attempts were counted
    ended: str = ""  # why the executor ended the last worker that had it, where it did


@dataclass(frozen=True)
class Answer:
    """What became of a unit: the result of its work, or why there is none."""

    unit: Unit
    result: Any = None
    error: ShardError | DamagedError | None = None

    def result_or_raise(self) -> Any:
        """The result; an error stops the stage."""
        if isinstance(self.error, DamagedError):
            raise self.error
        if self.error is not None:
            raise StageError(*self.error.args) from self.error
        return self.result


def units_of(inputs: Sequence[Any]) -> list[Unit]:
    """A unit for each input: its key is its number, and a digest of what is in it."""
    texts = [vars(given) if is_dataclass(given) else given for given in inputs]
    return [
        Unit(f"{index:06d}-{digest(text)[:12]}", given)
        for index, (text, given) in enumerate(zip(texts, inputs, strict=True))
    ]


@dataclass(frozen=True)
class UnitTask:
    """Where one unit of work runs. Implements `Task`."""

    worker: Worker
    folder: Storage
    run: Storage
    journal: str  # the name of its folder
    key: str
    page_checksums: bool = True  # in out/
    unchecked: frozenset[int] = frozenset()  # shards that are made again, as they were: without

    def put_file(self, name: str, path: Path, sha256: str = "") -> None:
        """Stores a scratch file as `out/<name>` in the stage's folder."""
        with self.folder.scratch(f"{OUT}/{name}") as stored:
            shutil.move(path, stored)  # scratch may be another disk
            note_output(self.folder, name, stored, sha256)
            self.folder.commit(stored, f"{OUT}/{name}")

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
    """A call's work, opened once per worker: what the executor carries."""

    planned: PlannedStage
    seed: int
    run_id: str
    run: Storage
    folder: Storage
    journal: str
    work: Work
    local: frozenset[str]  # shared scratch folders of stages that still run
    journalled: bool  # false where the work stores records: they are its journal
    page_checksums: bool
    unchecked: frozenset[int]

    def __call__(self) -> "UnitsRun":
        return UnitsRun(self)


class UnitsRun:
    """Does one unit: counts the attempt, works, and leaves the result in the journal."""

    def __init__(self, units: Units) -> None:
        self.units = units
        leave_shared(units.local)
        self.scratch = tempfile.TemporaryDirectory(dir=scratch_folder())

    def close(self) -> None:
        self.scratch.cleanup()
        mapped.cache_clear()  # a deleted file that is mapped keeps its room on the disk
        free_gpu([self.units.planned])

    def __call__(self, unit: Unit) -> Answer:
        units = self.units
        teller = Teller((units.planned.name,), unit.key)
        scratch = Path(self.scratch.name)
        worker = worker_of(units.planned, units.seed, scratch, units.folder, tell=teller)
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
        place = f"stage '{units.planned.name}', unit {unit.key}{_file_of(unit.input)}"
        try:
            result = attempts.attempt(
                partial(self._work, unit, task),
                units.folder,
                name,
                unit.key,
                units.run_id,
                place,
                begun=unit.begun,
                ended=unit.ended,
            )
        except (ShardError, DamagedError) as error:
            return Answer(unit, error=error)
        finally:
            teller.over()
        return Answer(unit, result)

    def _work(self, unit: Unit, task: UnitTask, number: int) -> Any:
        units = self.units
        result = units.work(unit.input, task)
        if units.journalled:
            name = f"{units.journal}/{unit.key}.json"
            put_sealed(units.folder, name, result, point="journal", of=unit.key)
        return result


def _file_of(given: Any) -> str:
    """The file that a unit reads, where it is a root's: the one to look at where it fails."""
    source = getattr(given, "source", given)
    path = source.get("path") if isinstance(source, Mapping) else None
    return f", {path}" if path else ""


def map_one(fn: Callable[[Any, Task], Mapping[str, Any]], item: Any, task: UnitTask) -> Any:
    """The work of `map`: fn of one item."""
    return dict(fn(item, task))
