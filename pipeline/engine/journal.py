"""The journal of a dataset stage, by which a killed stage resumes at the call it was in.

A call is numbered (`02-shuffle`). Each of its units, once done, leaves a small result in
`calls-<inputs>/02-shuffle/`; when all are done the call's results become `02-shuffle.json` and the
units go. Run again, a finished call returns at once and an unfinished one does what is missing.
A digest of the inputs is in the folder's name: changed inputs start a new journal, as does another
version that cuts its calls otherwise.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from clipmill.metadata.fingerprint import digest
from clipmill.metadata.record import Record
from clipmill.metadata.scan import Scan
from clipmill.metadata.sealed import put_sealed, read_sealed
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.units import Answer, Unit, Units, Work, units_of
from clipmill.pipeline.executors import Executor, Step
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.run_folder.rows import PoolShards

UNITS = 3  # how calls are cut into units, and moved rows lie in files: another's stays unread
KINDS = {  # of calls, in words
    "map": "working",
    "shuffle": "sorting rows",
    "reduce": "counting",
    "shards": "storing shards",
    "restore": "storing shards",
    "launch": "working",
    "uids": "indexing uids",
}


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """One dataset stage in one run: what its calls work with, and whom they tell."""

    planned: PlannedStage
    seed: int
    run_id: str
    run: Storage
    folder: Storage
    executor: Executor
    made_of: dict[str, str]  # parents of the records it stores
    known: Scan
    crash_ok: bool  # shards that ended their worker are tried again
    home: PoolShards | None  # the rows it reads; None where it has none of one root
    page_checksums: bool
    wanted: frozenset[str]
    local: set[str]  # scratch folders that the stages of this run share between workers, by name
    on_stored: Callable[[int, int], None]  # its shards, and those of them that are stored
    on_shard: Callable[[Record, int], None]  # one that is now stored, and how many there will be
    on_unit: Callable[[str, int, int, str], None]  # a call, its units done and all, in words


class Journal:
    """The numbered calls of a dataset stage, and the results that it has of them."""

    def __init__(self, run: StageRun) -> None:
        self.run = run
        # Whose hashes and formats a journal holds.
        versions = f"{pa.__version__} {version('polars')} {UNITS}"
        key = digest([*run.made_of.values(), versions])[:12]
        self.name = "calls" if run.planned.is_root else f"calls-{key}"
        self.words = ""  # what the stage says that its calls do
        self._prefix = self._round = ""
        self._count = 0

    def next_call(self, kind: str) -> str:
        """The path of the stage's next call in its folder, without an ending."""
        self._count += 1
        return f"{self.name}/{self._prefix}{self._count:02d}-{kind}"

    @contextlib.contextmanager
    def round(self, call: str, number: int, of: int) -> Iterator[None]:
        """Inside it calls are numbered anew, after the call and round that they belong to."""
        outside = self._prefix, self._count, self._round
        self._prefix, self._count = f"{call.removeprefix(f'{self.name}/')}.{number:04d}.", 0
        self._round = f"round {number + 1} of at most {of}, "
        yield
        self._prefix, self._count, self._round = outside

    def told(self, call: str, done: int, units: int, also: str = "") -> None:
        """Says how many units of a call are done, in the stage's words or those for its kind."""
        name = call.removeprefix(f"{self.name}/")
        words = self.words or KINDS.get(name.rpartition("-")[2].partition(".")[0], name)
        words = f"{words}, {also}" if also else words
        self.run.on_unit(name, done, units, f"{self._round}{words}")

    def results(
        self,
        call: str,
        work: Work,
        inputs: list[Any],
        is_whole: Callable[[dict[str, Any]], bool] = lambda result: True,
    ) -> list[dict[str, Any]]:
        """The result of work on every input; of those in the journal that are whole, at once."""
        folder = self.run.folder
        units = units_of(inputs)
        stored = read_sealed(folder, f"{call}.json")
        done = {key: result for key, result in (stored or {}).items() if is_whole(result)}
        if any(unit.key not in done for unit in units):
            there = {entry.name for entry in folder.entries(call)}
            for key in (unit.key for unit in units if f"{unit.key}.json" in there):
                result = read_sealed(folder, f"{call}/{key}.json", of=key)
                done |= {key: result} if result is not None and is_whole(result) else {}
        left = [unit for unit in units if unit.key not in done]
        for answer in self.answers(call, work, left, len(done), journalled=True):
            done[answer.unit.key] = answer.result_or_raise()
        results = {unit.key: done[unit.key] for unit in units}
        if stored is None or left:
            put_sealed(folder, f"{call}.json", results, point="journal")
            folder.delete_folder(call)
        return list(results.values())

    def answers(
        self, call: str, work: Work, units: list[Unit], done: int, *, journalled: bool = False
    ) -> Iterator[Answer]:
        """What became of each unit, as they finish; `done` others were before.

        Not journalled where records are stored.
        """
        if not units:
            return
        run, name = self.run, call.removeprefix(f"{self.name}/")
        self.told(call, done, done + len(units))
        step = Step(
            name=f"{run.planned.name} {name}",
            start=Units(
                planned=run.planned,
                seed=run.seed,
                run_id=run.run_id,
                run=run.run,
                folder=run.folder,
                journal=call,
                local=frozenset(run.local),
                work=work,
                journalled=journalled,
                page_checksums=run.page_checksums,
                unchecked=run.known.unchecked,
            ),
            resources=run.planned.stage.resources,
        )
        for number, answer in enumerate(run.executor.stream([step], units), start=1):
            yield answer
            self.told(call, done + number, done + len(units))
