"""A caption stage outside of a run: its worker, and its function called with some batches."""

import asyncio
from pathlib import Path

import pyarrow as pa

from clipmill.metadata.uid import uid_of
from clipmill.pipeline.stage import Remembered, RowStage, Worker


class Counted(Remembered):
    """Answers in memory, and how many were put there: each was asked for once."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def put(self, key: bytes, answer: bytes) -> None:
        self.asked += 1
        super().put(key, answer)


def worker(**given) -> Worker:
    return Worker(
        **{"seed": 0, "stage": "made", "device": "cpu", "threads": 1, "scratch": Path(), **given}
    )


def rows_of(**columns) -> pa.Table:
    """A batch of these columns; uids are those of its row numbers."""
    table = pa.table(columns)
    uids = [uid_of(str(number), None) for number in range(len(table))]
    return table.add_column(0, "uid", pa.array(uids, pa.binary(16)))


def run(stage: RowStage, *batches: pa.Table, at: Worker | None = None) -> list[dict]:
    """The rows that a stage answers to the batches of one shard."""

    async def given():
        for batch in batches:
            yield batch

    async def answered():
        return [table async for table in stage.open(at or worker())(given())]

    return pa.concat_tables(asyncio.run(answered())).to_pylist()
