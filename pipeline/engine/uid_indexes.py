"""The indexes of a root's uids: those that are missing are made of its stored shards, by run."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from clipmill.metadata.parquet_file import read_file
from clipmill.metadata.schema import UID
from clipmill.metadata.uid import halves
from clipmill.metadata.uid_index import FOLDER, Run, put_index, runs_of
from clipmill.pipeline.engine.context import RunContext
from clipmill.pipeline.engine.units import UnitTask, units_of

READERS = 8  # of shards of an object store: each waits for an answer
DISK_READERS = 1  # uids are decoded so fast that threads wait for one another
BATCH_ROWS = 1 << 18


def index_uids(context: RunContext) -> None:
    """Stores those of the root's shards as they are, and takes away those of shards as they were.

    Killed on the way, the next run makes what is missing.
    """
    records = [record for record in context.records.values() if record.data]
    runs = runs_of((record.shard, str(record.data), record.rows) for record in records)
    if not runs:
        return
    folder = context.run.folder
    there = {f"{FOLDER}/{entry.name}": entry.size for entry in folder.entries(FOLDER)}
    left = units_of([run for run in runs if there.get(run.name) != run.size_bytes])
    call = f"{context.journal}/uids"
    for answer in context.calls.answers(call, index_run, left, len(runs) - len(left)):
        answer.result_or_raise()
    for name in there.keys() - {run.name for run in runs}:
        folder.delete(name)


def index_run(run: Run, task: UnitTask) -> None:
    """Reads the uids of a run of shards, and stores their index."""
    half_N = np.empty(sum(run.rows), np.uint64)
    starts = np.cumsum([0, *run.rows]).tolist()

    def read(file: str, start: int, rows: int) -> None:
        for table in read_file(task.folder, file, [UID.name], BATCH_ROWS, rows=rows):
            half_N[start : start + len(table)] = halves(table[UID.name])[:, 0]
            start += len(table)

    with ThreadPoolExecutor(DISK_READERS if task.folder.is_local else READERS) as pool:
        list(pool.map(read, run.files, starts, run.rows))
    put_index(task.folder, run, half_N)
