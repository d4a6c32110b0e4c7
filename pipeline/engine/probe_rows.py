"""The rows of a probe in a worker: each read, and asked for by itself."""

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

AT_ONCE = 1024  # rows in hand: a stage that asks waits for its own requests
ROW: ContextVar[int] = ContextVar("row")  # whose request it is

Place = tuple[int, int]  # shard and position
States = Mapping[int, Mapping[str, ShardState]]  # by shard: stage to its state


def answered(
    chain: Chain, states: States, places: Sequence[Place], rank: Rank
) -> Mapping[str, Any]:
    """What the answers of each row `took`, how many rows have which of `reasons`, and `seconds`.

    `chain` has one stage. It is the work of an only worker: `rank` tells it nothing.
    """
    rows = _rows(chain, states, places)
    took: dict[int, list[Usage]] = defaultdict(list)
    with tempfile.TemporaryDirectory(dir=scratch_folder()) as scratch:
        functions = Functions(chain, Path(scratch), lambda one: took[ROW.get()].append(one))
        try:
            function = cast(StreamFunction, functions.function(chain.stages[0]))
            start_s = time.monotonic()
            work = _each(function, rows)
            made = asyncio.run_coroutine_threadsafe(work, functions.events.loop).result()
            seconds = time.monotonic() - start_s
        finally:
            functions.flush()  # of a probe that fails too
            functions.close()
    reasons = Counter(one for table in made for one in table[REASON.name].to_pylist() if one)
    by_row = tuple(tuple(took[number]) for number in range(len(rows)))
    return {"took": by_row, "reasons": dict(reasons), "seconds": seconds}


def _rows(chain: Chain, states: States, places: Sequence[Place]) -> list[pa.Table]:
    """Each row as a table of its own, as the stage reads it; in the order of their places."""
    (planned,) = chain.stages
    found: dict[Place, pa.Table] = {}
    for shard in states:
        position_K = np.sort([position for of_shard, position in places if of_shard == shard])
        for batch in _batches(chain, states[shard]):
            end = batch.start + len(batch.whole)
            here_K = position_K[(position_K >= batch.start) & (position_K < end)]
            if len(here_K):
                given = batch.only(here_K - batch.start).given(planned)
                for number, position in enumerate(here_K.tolist()):
                    found[shard, position] = given.slice(number, 1)
    return [found[place] for place in places]


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
