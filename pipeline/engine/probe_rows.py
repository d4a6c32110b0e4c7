"""Computes the rows of a probe in a worker, each by itself."""

import asyncio
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa

from clipmill.metadata.record import ShardState
from clipmill.metadata.schema import REASON, UID
from clipmill.metadata.scratch import scratch_folder
from clipmill.pipeline.dataset import Rank
from clipmill.pipeline.engine.chain import Chain
from clipmill.pipeline.engine.functions import Batch, Functions
from clipmill.pipeline.provided import Usage
from clipmill.pipeline.run_folder.rows import read_rows
from clipmill.pipeline.stage import RowStage, StreamFunction

AT_ONCE = 1024  # rows computed side by side; the stage itself bounds its requests
ROW: ContextVar[int] = ContextVar("row")  # number of the row that a request belongs to

Place = tuple[int, int]  # shard and position
States = Mapping[int, Mapping[str, ShardState]]  # shard -> stage -> its state


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
    for shard in states:
        position_K = np.sort([position for of_shard, position in places if of_shard == shard])
        for batch in _batches(chain, states[shard]):
            end = batch.start + len(batch.whole)
            here_K = position_K[(position_K >= batch.start) & (position_K < end)]
            if len(here_K):
                table = batch.only(here_K - batch.start).inputs(planned)
                for number, position in enumerate(here_K.tolist()):
                    rows[shard, position] = table.slice(number, 1)
    return [rows[place] for place in places]


def _batches(chain: Chain, states: Mapping[str, ShardState]) -> Iterator[Batch]:
    (planned,) = chain.stages
    assert isinstance(planned.stage, RowStage)
    reading = {f"{s}.{column}": (s, column) for s, column in planned.bindings[0].values()}
    start, rows = 0, planned.stage.batch_rows
    for table in read_rows(chain.stored, states, reading, planned.root, rows):
        columns = {binding: table[name] for name, binding in reading.items()}
        yield Batch(start=start, whole=table[UID.name], columns=columns)
        start += len(table)


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
