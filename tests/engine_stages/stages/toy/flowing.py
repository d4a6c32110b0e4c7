"""The number again, from a stage that takes several batches before it gives one back."""

import asyncio
import itertools
import json
import os
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import REASON, REASON_TYPE, Column
from clipmill.pipeline.stage import RowStage, StreamFunction, Worker, location
from clipmill.stages.ops.ahead import ahead

COPY = Column("copy", pa.int64(), "", "The number.")
NUMBER = Column("number", pa.int64(), "", "Any number.")
OPEN: list[str] = []  # what async functions of this process hold open


@dataclass(frozen=True, kw_only=True)
class Flowing(RowStage):
    """The number; null where the script says `timeout`.

    The script is a JSON object. `raise`, `kill`, `timeout`: lists of numbers. `wrong`: what is
    wrong with the answers. Beside it lies a log of every number asked for, in the order they were.
    """

    script: str = location()
    is_async: bool = location(True)
    batches_ahead: int = location(3)

    version = 1
    determinism = "recorded"
    reads = (NUMBER,)
    writes = (COPY,)
    reasons = ("timeout",)
    transient = ("timeout",)
    batch_rows = 8
    streams = True

    def open(self, worker: Worker) -> StreamFunction:
        script = Path(self.script)
        if self.is_async:
            return Waiting(script, 8 * self.batches_ahead)
        return partial(taken, script, self.batches_ahead)


class Waiting:
    """The async kind: it holds something open from shard to shard, in the worker's event loop."""

    def __init__(self, script: Path, rows_ahead: int) -> None:
        self.script, self.rows_ahead = script, rows_ahead
        self.held: AsyncIterator[asyncio.AbstractEventLoop] | None = None

    async def __call__(self, batches: AsyncIterator[pa.Table]) -> AsyncIterator[pa.Table]:
        if self.held is None:
            self.held = holding()
            self.loop = await anext(self.held)
        assert self.loop is asyncio.get_running_loop()
        mood = json.loads(self.script.read_text())
        answers = ahead(batches, self.answer, self.rows_ahead)
        async for answer in wrong(mood.get("wrong"), answers):
            yield answer

    async def answer(self, batch: pa.Table) -> pa.Table:
        # A later batch of a few is done first.
        first = batch[NUMBER.name][0].as_py() if len(batch) else 0
        await asyncio.sleep(0.002 * (3 - first // 8 % 3))
        return copy(self.script, batch)


async def holding() -> AsyncIterator[asyncio.AbstractEventLoop]:
    OPEN.append("session")
    try:
        yield asyncio.get_running_loop()
    finally:
        await asyncio.sleep(0)
        OPEN.remove("session")


async def wrong(how: str | None, answers: AsyncIterator[pa.Table]) -> AsyncIterator[pa.Table]:
    async for answer in answers:
        if how == "fewer batches":
            return
        yield answer.slice(1) if how == "fewer rows" else answer
        if how == "more batches":
            yield answer


def taken(script: Path, ahead: int, batches: Iterator[pa.Table]) -> Iterator[pa.Table]:
    how = json.loads(script.read_text()).get("wrong")
    held: deque[pa.Table] = deque()
    for batch in itertools.chain(batches, itertools.repeat(None, ahead)):
        if batch is not None:
            held.append(batch)
        if batch is not None and len(held) < ahead:
            continue
        if held and how != "fewer batches":
            answer = copy(script, held.popleft())
            yield answer.slice(1) if how == "fewer rows" else answer
            yield from [answer] if how == "more batches" else []


def copy(script: Path, batch: pa.Table) -> pa.Table:
    mood: dict[str, Any] = json.loads(script.read_text())
    number = batch[NUMBER.name]
    seen = set(number.to_pylist())
    with script.with_suffix(".log").open("a") as file:
        file.writelines(f"{n}\n" for n in number.to_pylist())
    if seen & set(mood.get("kill", [])):
        os.abort()
    if seen & set(mood.get("raise", [])):
        raise ZeroDivisionError("in a bad mood")
    late = pc.is_in(number, pa.array(mood.get("timeout", []), pa.int64()))
    reason = pc.if_else(late, "timeout", None).cast(REASON_TYPE)
    return pa.table({COPY.name: pc.if_else(late, None, number), REASON.name: reason})
