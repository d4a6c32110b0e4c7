"""Some rows of a stage that asks a model, asked for before the run: what the others will take.

The answers lie in the run folder, where the run finds them.
"""

import asyncio
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from metadata.record import ShardState
from metadata.schema import REASON, UID
from metadata.scratch import scratch_folder
from metadata.storage import Storage
from metadata.uid import coin_hash
from pipeline.engine.budget import FOLDER as BUDGET
from pipeline.engine.budget import close_accounts
from pipeline.engine.chain import Chain
from pipeline.engine.chain_compute import rows_asked
from pipeline.engine.functions import Batch, Functions
from pipeline.engine.prediction import Pace, Predicted, hours, pace, rest
from pipeline.planning.plan import Plan
from pipeline.planning.planned import PlannedStage
from pipeline.provided import Took
from pipeline.run_folder import lock
from pipeline.run_folder.claim import refuse_another_seed
from pipeline.run_folder.done import current, parents_of
from pipeline.run_folder.rows import read_rows
from pipeline.run_folder.state import RunState, StageState
from pipeline.stage import RowStage, StreamFunction

# Shapes: N rows of a shard, K of a batch, D rows that were drawn.

AT_ONCE = 1024  # rows in hand: a stage that asks waits for its own requests
BATCH_ROWS = 65_536  # of uids
ROW: ContextVar[int] = ContextVar("row")  # whose request it is


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What some rows of a stage took, and what those that are left will take."""

    left: int  # rows of which the run does not know yet, after the probe
    shards: int  # that hold them
    workers: int
    took: tuple[tuple[Took, ...], ...]  # of each row that was drawn, by answer
    reasons: Mapping[str, int]  # of rows without an answer
    seconds: float

    @property
    def rows(self) -> int:
        return len(self.took)

    @property
    def asked(self) -> int:
        """Requests that were sent."""
        return sum(one.slot_s is not None for one in self._all)

    @property
    def stored(self) -> int:
        """Answers that lay there already."""
        return len(self._all) - self.asked

    @property
    def at_once(self) -> int | None:
        """Requests of a worker at once; None where none was sent."""
        return max((one.at_once or 0 for one in self._all), default=0) or None

    @cached_property
    def pace(self) -> Pace | None:
        slots = [one.slot_s for one in self._all if one.slot_s is not None]
        return pace(slots, self.at_once) if self.at_once else None

    @property
    def spent(self) -> dict[str, float]:
        """What the requests took that were sent."""
        paid = [[one for one in row if one.slot_s is not None] for row in self.took]
        return {name: float(of_D.sum()) for name, of_D in _by_row(paid).items()}

    @cached_property
    def predicted(self) -> dict[str, Predicted]:
        """What the rows that are left will take, as if no answer of theirs were stored.

        `hours` where requests were sent, `usd` where the stage knows prices.
        """
        if not self.took:
            return {}
        found = {name: rest(of_D, self.left) for name, of_D in _by_row(self.took).items()}
        if self.pace is not None and self.at_once is not None:
            asked = found["requests"]
            found["hours"] = hours(self.pace, asked, self.at_once, self.shards, self.workers)
        return found

    @property
    def _all(self) -> list[Took]:
        return [one for row in self.took for one in row]


def _by_row(took: Sequence[Sequence[Took]]) -> dict[str, NDArray[np.float64]]:
    """(D,) of each quantity, what each row took."""
    values: dict[str, list[float]] = {
        "requests": [len(row) for row in took],
        "prompt_tokens": [sum(one.prompt_tokens for one in row) for row in took],
        "completion_tokens": [sum(one.completion_tokens for one in row) for row in took],
    }
    if all(one.usd is not None for row in took for one in row):
        values["usd"] = [sum(one.usd or 0.0 for one in row) for row in took]
    return {name: np.array(of_D, np.float64) for name, of_D in values.items()}


def asking(plan: Plan) -> list[PlannedStage]:
    """The stages of a plan that ask a model."""
    stages = plan.stages.values()
    return [it for it in stages if isinstance(it.stage, RowStage) and it.stage.asks]


def missing(state: RunState, planned: PlannedStage) -> list[str]:
    """The stages that have to run before rows of this one can be asked for."""
    return [need for need in planned.needs if not _is_over(state.stages[need])]


def _is_over(stage: StageState) -> bool:
    """Complete, or some of its shards have failed: the run goes on without these."""
    if stage.complete or not stage.planned.is_row:
        return stage.complete
    return stage.total is not None and len(stage.shards) + len(stage.failures) == stage.total


def probe(
    plan: Plan, run: Storage, names: Sequence[str], rows: int, workers: Mapping[str, int]
) -> Iterator[tuple[str, Probed]]:
    """Asks for so many rows of each of these stages; none of them misses a stage before it.

    StageError where no answer comes, as its budget is spent: what was answered is stored.
    """
    with lock.held(run) as owned:
        refuse_another_seed(plan, owned)
        state = RunState(plan, owned)
        for name in names:
            yield name, _probed(state, plan.stages[name], rows, workers[name])


def _probed(state: RunState, planned: PlannedStage, rows: int, workers: int) -> Probed:
    drawn = _Drawn(state, planned, rows)
    tables = list(drawn.tables())
    tally: dict[int, list[Took]] = defaultdict(list)
    reasons: Counter[str] = Counter()
    start_s = time.monotonic()
    if tables:
        close_accounts(state.stored[planned.name].folder.child(BUDGET))
        answers = _answered(state, planned, tables, tally)
        reasons.update(one for it in answers for one in it[REASON.name].to_pylist() if one)
    return Probed(
        left=drawn.rows - len(tables),
        shards=len(drawn.asked),
        workers=max(1, min(workers, len(drawn.asked))),
        took=tuple(tuple(tally[number]) for number in range(len(tables))),
        reasons=reasons,
        seconds=time.monotonic() - start_s,
    )


class _Drawn:
    """Rows that a stage has not computed, and those of them that a hash of the uid draws."""

    def __init__(self, state: RunState, planned: PlannedStage, rows: int) -> None:
        self.state, self.planned = state, planned
        self.asked = dict(self._asked())
        self.rows = sum(int(asked_N.sum()) for _, asked_N in self.asked.values())
        self.places_D2 = self._draw(rows)

    def _asked(self) -> Iterator[tuple[int, tuple[Mapping[str, ShardState], NDArray[np.bool_]]]]:
        """Shards with something to compute, and of each its inputs and (N,) which rows."""
        state, planned = self.state, self.planned
        mine, models = state.stages[planned.name], state.digests(planned.folders)
        for shard in sorted(state.stages[planned.root].shards):
            states = state.shard_states(planned, shard)
            failure = mine.failures.get(shard)
            if shard in mine.shards or states is None or (failure and failure.crashed):
                continue
            parents = parents_of(planned, states, models)
            records = current(mine.scan.records.get(shard, []), parents)
            mask = states[planned.only] if planned.only else None
            asked_N = np.ones(states[planned.root].rows, bool)
            if records or mask:
                asked_N = rows_asked(state.stored[planned.name], records, mask, ())
            if asked_N.any():
                yield shard, (states, asked_N)

    def _draw(self, rows: int) -> NDArray[np.int64]:
        """(D, 2) shard and position of the rows with the least hashes, least first."""
        hashes, places = np.empty(0, np.uint64), np.empty((0, 2), np.int64)
        for shard, (states, asked_N) in self.asked.items():
            start = 0
            for table in read_rows(self.state.stored, states, {}, self.planned.root, BATCH_ROWS):
                bits_K = coin_hash(
                    table[UID.name],
                    seed=self.state.plan.seed,
                    stage=self.planned.name,
                    purpose="probe",
                )
                at_K = np.flatnonzero(asked_N[start : start + len(table)])
                here = np.stack([np.full(len(at_K), shard), at_K + start], axis=1)
                hashes = np.concatenate([hashes, bits_K[at_K]])
                places = np.concatenate([places, here])
                order = np.argsort(hashes, kind="stable")[:rows]
                hashes, places = hashes[order], places[order]
                start += len(table)
        return places

    def tables(self) -> Iterator[pa.Table]:
        """Each row that was drawn as a table of its own, as the stage reads it; in turn by hash."""
        found: dict[tuple[int, int], pa.Table] = {}
        for shard in np.unique(self.places_D2[:, 0]):
            places = np.sort(self.places_D2[self.places_D2[:, 0] == shard, 1])
            for batch in self._batches(int(shard)):
                end = batch.start + len(batch.whole)
                here = places[(places >= batch.start) & (places < end)]
                if len(here):
                    given = batch.only(here - batch.start).given(self.planned)
                    for number, place in enumerate(here):
                        found[int(shard), int(place)] = given.slice(number, 1)
        for shard, place in self.places_D2.tolist():
            yield found[shard, place]

    def _batches(self, shard: int) -> Iterator[Batch]:
        planned, stored = self.planned, self.state.stored
        assert isinstance(planned.stage, RowStage)
        reading = {f"{s}.{column}": (s, column) for s, column in planned.bindings[0].values()}
        states, rows, start = self.asked[shard][0], planned.stage.batch_rows, 0
        for table in read_rows(stored, states, reading, planned.root, rows):
            columns = {binding: table[name] for name, binding in reading.items()}
            yield Batch(start=start, whole=table[UID.name], columns=columns)
            start += len(table)


def _answered(
    state: RunState,
    planned: PlannedStage,
    rows: Sequence[pa.Table],
    tally: dict[int, list[Took]],
) -> list[pa.Table]:
    """The stage's answer for each row; what each took is added to the tally."""
    chain = Chain(
        seed=state.plan.seed,
        run_id="",
        run=state.run,
        stages=(planned,),
        stored=state.stored,
        models=state.digests(planned.folders),
    )
    with tempfile.TemporaryDirectory(dir=scratch_folder()) as scratch:
        functions = Functions(chain, Path(scratch), lambda took: tally[ROW.get()].append(took))
        try:
            function = cast(StreamFunction, functions.function(planned))
            work = _each(function, rows)
            return asyncio.run_coroutine_threadsafe(work, functions.events.loop).result()
        finally:
            functions.flush()  # of a probe that fails too
            functions.close()


async def _each(function: StreamFunction, rows: Sequence[pa.Table]) -> list[pa.Table]:
    """What the function makes of each row by itself, in their order; they wait side by side."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(number: int, row: pa.Table) -> pa.Table:
        async with slots:
            ROW.set(number)  # all that the stage begins from here on knows it
            made = cast(AsyncIterator[pa.Table], function(cast(Any, _alone(row))))
            (answer,) = [table async for table in made]
            return answer

    tasks = [asyncio.create_task(one(number, row)) for number, row in enumerate(rows)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _alone(row: pa.Table) -> AsyncIterator[pa.Table]:
    yield row
