"""Stores the missing indexes of a root's uids, one for each run of stored shards."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from clipmill.metadata.parquet_file import read_file
from clipmill.metadata.schema import UID
from clipmill.metadata.uid import halves
from clipmill.metadata.uid_index import FOLDER, Run, put_index, runs_of
from clipmill.pipeline.engine.context import RunContext
from clipmill.pipeline.engine.units import UnitTask, units_of

READERS = 8  # of an object store, where each waits for the network
DISK_READERS = 1  # more would only wait for one another: decoding uids is fast
BATCH_ROWS = 1 << 18


def index_uids(context: RunContext) -> None:
    """Stores missing indexes of the root's current shards, and deletes those of outdated ones.

    If killed on the way, the next run stores the rest.
    """
    records = [record for record in context.records.values() if record.data]
    runs = runs_of((record.shard, str(record.data), record.rows) for record in records)
    if not runs:
        return
    folder = context.run.folder
    sizes = {f"{FOLDER}/{entry.name}": entry.size for entry in folder.entries(FOLDER)}
    left = units_of([run for run in runs if sizes.get(run.name) != run.size_bytes])
    call = f"{context.calls.name}/uids"
    for answer in context.calls.answers(call, index_run, left, len(runs) - len(left)):
        answer.result_or_raise()
    for name in sizes.keys() - {run.name for run in runs}:
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
