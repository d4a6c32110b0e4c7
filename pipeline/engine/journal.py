"""The journal of a dataset stage, by which a killed stage resumes at the call it was in.

Calls are numbered (`02-shuffle`). Each finished unit of a call leaves a small result in
`calls-<inputs>/02-shuffle/`; when all are done, the results become `02-shuffle.json` and the units'
files are deleted. Run again, a finished call returns at once, and an unfinished one does only the
missing units. The folder's name holds a digest of the inputs: changed inputs start a new journal,
as does another version that cuts calls differently.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from importlib import metadata
from typing import Any

import pyarrow as pa

from clipmill.metadata.fingerprint import digest
from clipmill.metadata.outputs import OUT
from clipmill.metadata.scan import Scan
from clipmill.metadata.sealed import put_sealed, read_sealed
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.running import Running
from clipmill.pipeline.engine.units import PUT, Answer, Unit, Units, UnitsRun, Work, units_of
from clipmill.pipeline.executors import Step
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.run_folder.rows import PoolShards

version = cache(metadata.version)  # reads a file

UNITS = 3  # version of how calls are cut into units and rows are stored; others are not read
KINDS = {  # kinds of calls, as shown in progress
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
    """One dataset stage in one run: the inputs of its calls."""

    running: Running
    planned: PlannedStage
    folder: Storage
    made_of: dict[str, str]  # parents of the records it stores
    known: Scan
    home: PoolShards | None  # the rows it reads; None unless they are of one root
    page_checksums: bool


def journal_of(made_of: Mapping[str, str]) -> str:
    """Returns the folder of a stage's journal; it holds hashes and formats of these versions."""
    versions = f"{pa.__version__} {version('polars')} {UNITS}"
    return f"calls-{digest([*made_of.values(), versions])[:12]}"


class Journal:
    """The numbered calls of a dataset stage, with their stored results."""

    def __init__(self, run: StageRun) -> None:
        self.run = run
        self.name = "calls" if run.planned.is_root else journal_of(run.made_of)
        self.words = ""  # the stage's own text for progress
        self._prefix = self._round = ""
        self._count = 0

    def next_call(self, kind: str) -> str:
        """Returns the path of the next call within the stage's folder, without an ending."""
        self._count += 1
        return f"{self.name}/{self._prefix}{self._count:02d}-{kind}"

    @contextlib.contextmanager
    def round(self, call: str, number: int, rounds: int) -> Iterator[None]:
        """Numbers the calls within from 1, prefixed by the call and round they belong to."""
        outside = self._prefix, self._count, self._round
        self._prefix, self._count = f"{call.removeprefix(f'{self.name}/')}.{number:04d}.", 0
        self._round = f"round {number + 1} of at most {rounds}, "
        yield
        self._prefix, self._count, self._round = outside

    def report(self, call: str, done: int, units: int, also: str = "") -> None:
        """Reports the units of a call that are done, in the stage's words or those of its kind."""
        name = call.removeprefix(f"{self.name}/")
        words = self.words or KINDS.get(name.rpartition("-")[2].partition(".")[0], name)
        words = f"{words}, {also}" if also else words
        watcher = self.run.running.watcher
        watcher.unit(self.run.planned.name, name, done, units, f"{self._round}{words}")

    def results(
        self,
        call: str,
        work: Work,
        inputs: list[Any],
        is_whole: Callable[[dict[str, Any]], bool] = lambda result: True,
    ) -> list[dict[str, Any]]:
        """Returns the result of work on every input; whole results in the journal are reused.

        A result is none without the files that its unit put into out/.
        """
        folder = self.run.folder
        units = units_of(inputs)

        def is_valid(result: dict[str, Any]) -> bool:
            return is_whole(result) and (PUT not in result or self._out.issuperset(result[PUT]))

        stored = read_sealed(folder, f"{call}.json")
        done = {key: result for key, result in (stored or {}).items() if is_valid(result)}
        if any(unit.key not in done for unit in units):
            names = {entry.name for entry in folder.entries(call)}
            for key in (unit.key for unit in units if f"{unit.key}.json" in names):
                result = read_sealed(folder, f"{call}/{key}.json", of=key)
                done |= {key: result} if result is not None and is_valid(result) else {}
        left = [unit for unit in units if unit.key not in done]
        for answer in self.answers(call, work, left, len(done), journalled=True):
            done[answer.unit.key] = answer.result_or_raise()
        results = {unit.key: done[unit.key] for unit in units}
        if stored is None or left:
            put_sealed(folder, f"{call}.json", results, point="journal")
            folder.delete_folder(call)
        return [
            {name: value for name, value in result.items() if name != PUT}
            for result in results.values()
        ]

    @cached_property
    def _out(self) -> frozenset[str]:
        """The files in out/ that runs before this one left; somebody may have deleted some."""
        return frozenset(entry.name for entry in self.run.folder.entries(OUT, below=True))

    def answers(
        self, call: str, work: Work, units: list[Unit], done: int, *, journalled: bool = False
    ) -> Iterator[Answer]:
        """Yields each unit's answer as it finishes; `done` others were finished before.

        Units that store records need no journal.
        """
        if not units:
            return
        run, running, planned = self.run, self.run.running, self.run.planned
        self.report(call, done, done + len(units))
        whole = Units(
            planned=planned,
            seed=running.plan.seed,
            run_id=running.run_id,
            run=running.state.run,
            folder=run.folder,
            journal=call,
            local=frozenset(running.local),
            work=work,
            journalled=journalled,
            page_checksums=run.page_checksums,
            unchecked=run.known.unchecked,
            profile=planned if running.profile == planned.name else None,
        )
        name = f"{planned.name} {call.removeprefix(f'{self.name}/')}"
        step = Step(name=name, start=partial(UnitsRun, whole), resources=planned.stage.resources)
        for number, answer in enumerate(running.executor.stream([step], units), start=1):
            running.spent[planned.name].add(answer.spent)
            yield answer
            self.report(call, done + number, done + len(units))
