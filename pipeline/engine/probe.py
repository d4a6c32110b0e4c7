"""Asks a model for a few rows of a stage before the run, to predict the cost of the rest.

The answers are stored in the run folder, where the run finds them.
"""

import asyncio
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.record import ShardState
from clipmill.metadata.schema import REASON, UID
from clipmill.metadata.scratch import scratch_folder
from clipmill.metadata.storage import Storage
from clipmill.metadata.uid import coin_hash
from clipmill.pipeline.dataset import Rank
from clipmill.pipeline.engine.budget import FOLDER as BUDGET
from clipmill.pipeline.engine.budget import close_accounts
from clipmill.pipeline.engine.chain import Chain
from clipmill.pipeline.engine.chain_compute import rows_due
from clipmill.pipeline.engine.functions import Functions, read_batches
from clipmill.pipeline.engine.prediction import Pace, Predicted, hours, pace, rest
from clipmill.pipeline.executors import Executor
from clipmill.pipeline.planning.plan import Plan
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.provided import Usage
from clipmill.pipeline.run_folder import lock
from clipmill.pipeline.run_folder.claim import refuse_another_seed
from clipmill.pipeline.run_folder.done import current, parents_of
from clipmill.pipeline.run_folder.rows import read_rows
from clipmill.pipeline.run_folder.state import RunState, StageState
from clipmill.pipeline.stage import RowStage, StreamFunction

# Shapes: N rows of a shard, K of a batch, D rows drawn.

BATCH_ROWS = 65_536  # of uids
AT_ONCE = 1024  # rows computed side by side; the stage itself bounds its requests
ROW: ContextVar[int] = ContextVar("row")  # number of the row that a request belongs to

Place = tuple[int, int]  # shard and position
States = Mapping[int, Mapping[str, ShardState]]  # shard -> stage -> its state


@dataclass(frozen=True, kw_only=True)
class Probed:
    """The usage of a sample of a stage's rows, and a prediction for the rows left."""

    left: int  # rows without a result that were not drawn
    shards: int  # that hold rows without a result
    workers: int
    took: tuple[tuple[Usage, ...], ...]  # of each row drawn, by answer
    reasons: Mapping[str, int]  # of rows without an answer
    seconds: float

    @property
    def rows(self) -> int:
        return len(self.took)

    @property
    def asked(self) -> int:
        """Requests that were sent."""
        return sum(usage.slot_s is not None for usage in self._all)

    @property
    def stored(self) -> int:
        """Answers that were stored before."""
        return len(self._all) - self.asked

    @property
    def at_once(self) -> int | None:
        """Concurrent requests of a worker; None if none was sent."""
        return max((usage.at_once or 0 for usage in self._all), default=0) or None

    @cached_property
    def pace(self) -> Pace | None:
        slots = [usage.slot_s for usage in self._all if usage.slot_s is not None]
        return pace(slots, self.at_once) if self.at_once else None

    @property
    def spent(self) -> dict[str, float]:
        """Sums over the requests that were sent, by quantity."""
        sent = [[usage for usage in row if usage.slot_s is not None] for row in self.took]
        return {name: float(value_D.sum()) for name, value_D in _by_row(sent).items()}

    @cached_property
    def predicted(self) -> dict[str, Predicted]:
        """Predicted sums for the rows left, by quantity, as if none of their answers were stored.

        Has `hours` if requests were sent, and `usd` if the stage knows prices.
        """
        if not self.took:
            return {}
        sums = {name: rest(value_D, self.left) for name, value_D in _by_row(self.took).items()}
        if self.pace is not None and self.at_once is not None:
            requests = sums["requests"]
            sums["hours"] = hours(self.pace, requests, self.at_once, self.shards, self.workers)
        return sums

    @property
    def _all(self) -> list[Usage]:
        return [usage for row in self.took for usage in row]


def _by_row(took: Sequence[Sequence[Usage]]) -> dict[str, NDArray[np.float64]]:
    """Returns (D,) usage of each row, by quantity; `usd` only if all prices are known."""
    values: dict[str, list[float]] = {
        "requests": [len(row) for row in took],
        "prompt_tokens": [sum(usage.prompt_tokens for usage in row) for row in took],
        "completion_tokens": [sum(usage.completion_tokens for usage in row) for row in took],
    }
    if all(usage.usd is not None for row in took for usage in row):
        values["usd"] = [sum(usage.usd or 0.0 for usage in row) for row in took]
    return {name: np.array(value_D, np.float64) for name, value_D in values.items()}


def asking(plan: Plan) -> list[PlannedStage]:
    """Returns the stages of a plan that ask a model."""
    return [
        planned
        for planned in plan.stages.values()
        if isinstance(planned.stage, RowStage) and planned.stage.asks
    ]


def missing(state: RunState, planned: PlannedStage) -> list[str]:
    """Returns the stages that must run before this one can be probed."""
    return [need for need in planned.needs if not _is_over(state.stages[need])]


def _is_over(stage: StageState) -> bool:
    """Returns whether every shard is stored or, in a row stage, has failed."""
    if stage.complete or not stage.planned.is_row:
        return stage.complete
    return stage.total is not None and len(stage.shards) + len(stage.failures) == stage.total


def probe(
    plan: Plan,
    run: Storage,
    executor: Executor,
    names: Sequence[str],
    rows: int,
    workers: Mapping[str, int],
) -> Iterator[tuple[str, Probed]]:
    """Asks a model for `rows` rows of each stage in one worker; yields the results by stage.

    None of the stages may have `missing` needs. Raises StageError if no answer comes, for example
    because the budget is spent; answers received are stored.
    """
    with lock.held(run) as owned:
        refuse_another_seed(plan, owned)
        state = RunState(plan, owned)
        try:
            for name in names:
                yield name, _probed(state, plan.stages[name], executor, rows, workers[name])
        except BaseException:
            executor.close()  # while we still hold the folder's lock
            raise


def _probed(
    state: RunState, planned: PlannedStage, executor: Executor, rows: int, workers: int
) -> Probed:
    drawn = _drawn(state, planned, rows)
    answers: Mapping[str, Any] = {"took": (), "reasons": {}, "seconds": 0.0}
    if drawn.places:
        close_accounts(state.stored[planned.name].folder.child(BUDGET))
        chain = Chain(
            seed=state.plan.seed,
            run_id="",
            run=state.run,
            stages=(planned,),
            stored=state.stored,
            models=state.digests(planned.folders),
        )
        work = partial(answered, chain, drawn.states, drawn.places)
        (answers,) = executor.launch(work, 1, planned.stage.resources)
    return Probed(
        left=drawn.rows - len(drawn.places),
        shards=drawn.shards,
        workers=max(1, min(workers, drawn.shards)),
        took=answers["took"],
        reasons=answers["reasons"],
        seconds=answers["seconds"],
    )


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """A sample, by hash of uid, of the rows that a stage has not computed."""

    rows: int  # not computed
    shards: int  # with such rows
    places: tuple[Place, ...]
    states: States  # of the shards of rows drawn


def _drawn(state: RunState, planned: PlannedStage, count: int) -> _Drawn:
    """Draws the `count` rows with the least hashes, least first."""
    rows, shards = 0, 0
    hashes, places = np.empty(0, np.uint64), np.empty((0, 2), np.int64)
    for shard, states, missing_N in _not_computed(state, planned):
        rows, shards, start = rows + int(missing_N.sum()), shards + 1, 0
        for table in read_rows(state.stored, states, {}, planned.root, BATCH_ROWS):
            bits_K = coin_hash(
                table[UID.name], seed=state.plan.seed, stage=planned.name, purpose="probe"
            )
            row_K = np.flatnonzero(missing_N[start : start + len(table)])
            here = np.stack([np.full(len(row_K), shard), row_K + start], axis=1)
            hashes = np.concatenate([hashes, bits_K[row_K]])
            places = np.concatenate([places, here])
            order = np.argsort(hashes, kind="stable")[:count]
            hashes, places = hashes[order], places[order]
            start += len(table)
    by_shard = {
        shard: state.shard_states(planned, shard) for shard in np.unique(places[:, 0]).tolist()
    }
    return _Drawn(
        rows=rows,
        shards=shards,
        places=tuple((shard, position) for shard, position in places.tolist()),
        states={shard: states for shard, states in by_shard.items() if states},
    )


def _not_computed(
    state: RunState, planned: PlannedStage
) -> Iterator[tuple[int, Mapping[str, ShardState], NDArray[np.bool_]]]:
    """Yields shards with something to compute, their inputs, and (N,) True for its rows."""
    mine, models = state.stages[planned.name], state.digests(planned.folders)
    for shard in sorted(state.stages[planned.root].shards):
        states = state.shard_states(planned, shard)
        failure = mine.failures.get(shard)
        if shard in mine.shards or states is None or (failure and failure.crashed):
            continue  # a run does not try a shard again that crashed its worker
        digests = {name: parent.digest for name, parent in states.items()}
        parents = parents_of(planned, digests, models)
        records = current(mine.scan.records.get(shard, []), parents)
        mask = states[planned.only] if planned.only else None
        missing_N = np.ones(states[planned.root].rows, bool)
        if records or mask:
            missing_N = rows_due(state.stored[planned.name], records, mask, ())
        if missing_N.any():
            yield shard, states, missing_N


# In the worker


def answered(
    chain: Chain, states: States, places: Sequence[Place], rank: Rank
) -> Mapping[str, Any]:
    """Computes the rows at `places`; returns usage by row `took`, counts `reasons` and `seconds`.

    `chain` has one stage. There is one worker, so `rank` is not used.
    """
    rows = _rows(chain, states, places)
    took: dict[int, list[Usage]] = defaultdict(list)
    with tempfile.TemporaryDirectory(dir=scratch_folder()) as scratch:
        functions = Functions(chain, Path(scratch), lambda usage: took[ROW.get()].append(usage))
        try:
            function = cast(StreamFunction, functions.function(chain.stages[0]))
            start_s = time.monotonic()
            work = _each(function, rows)
            answers = asyncio.run_coroutine_threadsafe(work, functions.events.loop).result()
            seconds = time.monotonic() - start_s
        finally:
            functions.flush()  # answers of a failed probe are stored too
            functions.close()
    codes = (code for table in answers for code in table[REASON.name].to_pylist())
    reasons = Counter(code for code in codes if code)
    by_row = tuple(tuple(took[number]) for number in range(len(rows)))
    return {"took": by_row, "reasons": dict(reasons), "seconds": seconds}


def _rows(chain: Chain, states: States, places: Sequence[Place]) -> list[pa.Table]:
    """Reads the rows at `places`, each as a table of its own with the columns the stage reads."""
    (planned,) = chain.stages
    rows: dict[Place, pa.Table] = {}
    for shard, own in states.items():
        position_K = np.sort([position for of_shard, position in places if of_shard == shard])
        for batch in read_batches(chain, own, planned, planned.bindings[0].values()):
            end = batch.start + len(batch.whole)
            here_K = position_K[(position_K >= batch.start) & (position_K < end)]
            if len(here_K):
                inputs = batch.only(here_K - batch.start).inputs(planned)
                for number, position in enumerate(here_K.tolist()):
                    rows[shard, position] = inputs.slice(number, 1)
    return [rows[place] for place in places]


async def _each(function: StreamFunction, rows: Sequence[pa.Table]) -> list[pa.Table]:
    """Calls the function on each row by itself, concurrently; returns answers in row order."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def answer_of(number: int, row: pa.Table) -> pa.Table:
        async with slots:
            ROW.set(number)  # inherited by every task that the stage starts for this row
            tables = cast(AsyncIterator[pa.Table], function(cast(Any, _alone(row))))
            (answer,) = [table async for table in tables]
            return answer

    tasks = [asyncio.create_task(answer_of(number, row)) for number, row in enumerate(rows)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _alone(row: pa.Table) -> AsyncIterator[pa.Table]:
    yield row
