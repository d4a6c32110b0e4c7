"""`why UID` by the indexes of a root's uids, where each request takes 40 ms, as on an object store.

    python -m tests.benchmarks.why_uid [full | SHARDS ...]    200; full: to 10,000

Runs of many small shards, whose samples are asked for with the indexes, and without, as it was
until November 2026 (not of 10,000); the answers are compared. Of 100,000 shards
only the indexes are made, of drawn uids, and asked which shard holds one. Opening a file counts as
two requests, as its size is asked for. The run's records are in memory before.

The cost at writing: 100 shards of 10,000 rows, read, sorted and stored by a worker; and one index
of 1,024 such shards without its reading.

Aim: 2 s at 1,000 shards, 10 s at 100,000.
Measured (2026-11-27, EPYC, 2 shared cores at load 12): at 100, 1,000 and 10,000 shards 0.44, 0.66
and 0.65 s by 10, 10 and 46 requests; without indexes 0.84 and 8.39 s by 206 and 2,006. At 100,000
shards 1.56 s by 392 requests. Written, 8 bytes a row: 0.04 us a row of CPU with its reading.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import numpy as np

from clipmill.metadata.storage import Storage
from clipmill.metadata.uid_index import FOLDER, put_index, runs_of, shards_with
from clipmill.pipeline.engine.uid_indexes import index_run
from clipmill.pipeline.engine.units import UnitTask
from clipmill.pipeline.ledger.rows import ahead
from clipmill.pipeline.ledger.selection.why import why
from clipmill.pipeline.run_folder.state import RunState
from tests.benchmarks.side_by_side import begin
from tests.benchmarks.toy import plan_of, run_toy, scratch

ROWS, MOST = 20, 1_000  # of a shard; shards that are asked without an index
FAR_SHARDS, FAR_ROWS = 100_000, 100
REQUEST_S = 0.04
STORE: Any = SimpleNamespace(is_local=False)


def main(*sizes: int) -> str:
    told = []
    for shards in sizes:
        with scratch() as folder:
            told.append(ask(folder, shards))
    with scratch() as folder:
        ask_far(folder)
    with scratch() as folder:
        write(folder)
    return told[0]


def ask(folder: Path, shards: int) -> str:
    """What it took of a run of a pool and a row stage."""
    stages = {
        "pool": {"uses": "toy.rows", "shards": shards, "shard_rows": ROWS},
        "affine": {"uses": "toy.affine", "from": "pool"},
    }
    state = run_toy(plan_of(stages), folder / "run", workers=0)
    uid = state.uid("pool", shards - 1, 0)
    ways, answers, told = ["index", "shards"] if shards <= MOST else ["index"], [], []
    for way in ways:
        if way == "shards":
            Storage(state.stages["pool"].folder.uri).delete_folder(FOLDER)
        seconds, requests, answer = late(state, uid)
        answers.append(answer)
        print(f"{shards:>7,} shards, by {way:<6} {seconds:6.2f} s, {requests:>5} requests")
        told.append(f"{seconds:.2f} s by {requests} requests")
    assert all(answer == answers[0] for answer in answers)
    return f"{shards:,} shards: {', without indexes '.join(told)}"


def late(state: RunState, uid: str) -> tuple[float, int, object]:
    """Seconds, requests and the answer."""
    with far() as asked:
        began = time.perf_counter()
        answer = why(state, uid)
        return time.perf_counter() - began, len(asked), answer


@contextmanager
def far() -> Iterator[list[None]]:
    """Every request takes its time inside, and is noted."""
    open_file, read, asked = Storage.open, Storage.read_opened, []

    def wait(requests: int) -> None:
        asked.extend([None] * requests)
        time.sleep(requests * REQUEST_S)

    def late_open(folder: Storage, name: str) -> object:
        wait(2)
        return open_file(folder, name)

    def late_read(folder: Storage, file: Any, at: int, size: int) -> bytes:
        wait(1)
        return read(folder, file, at, size)

    with (
        mock.patch.object(Storage, "open", late_open),
        mock.patch.object(Storage, "read_opened", late_read),
        mock.patch.object(ahead, "DISK_READERS", ahead.READERS),
    ):
        yield asked


def ask_far(folder: Path) -> None:
    """Which of 100,000 shards holds a uid, by their indexes."""
    storage, rng = Storage(str(folder)), np.random.default_rng(0)
    runs = runs_of((shard, f"{shard}.parquet", FAR_ROWS) for shard in range(FAR_SHARDS))
    for run in runs:
        half_N = rng.integers(0, 1 << 64, sum(run.rows), dtype=np.uint64)
        uid = np.array(half_N[-1], ">u8").tobytes() + bytes(8)
        put_index(storage, run, half_N)
    with far() as asked:
        began = time.perf_counter()
        each = ahead.ahead(STORE, lambda run: shards_with(storage, run, [(uid, uid)]), runs)
        found = [shard for shards in each for shard in shards]
        seconds = time.perf_counter() - began
    assert found == [FAR_SHARDS - 1]
    print(f"{FAR_SHARDS:>7,} shards, by index  {seconds:6.2f} s, {len(asked):>5} requests")


def write(folder: Path) -> None:
    """What an index costs when it is written."""
    pool = {"uses": "toy.rows", "shards": 100, "shard_rows": 10_000}
    stage = run_toy(plan_of({"pool": pool}), folder / "run", workers=0).stages["pool"]
    (run,) = runs_of((shard, it.files[0], it.rows) for shard, it in stage.shards.items())
    stored = Storage(stage.folder.uri)  # the run has ended: nobody holds its lock
    rows, began = sum(run.rows), time.process_time()
    index_run(run, cast(UnitTask, SimpleNamespace(folder=stored)))  # all that it asks of its task
    spent, size = time.process_time() - began, (Path(stored.path) / run.name).stat().st_size
    print(
        f"{rows:,} rows read and indexed: {spent / rows * 1e6:.2f} us and {size / rows:.2f} B each"
    )
    (run,) = runs_of((shard, "", 10_000) for shard in range(1024))
    half_N = np.random.default_rng(0).integers(0, 1 << 64, sum(run.rows), dtype=np.uint64)
    began = time.process_time()
    put_index(stored, run, half_N)
    spent = time.process_time() - began
    print(f"{len(half_N):,} rows indexed: {spent / len(half_N) * 1e6:.2f} us each")


if __name__ == "__main__":
    begin(main, quick=(200,), full=(100, 1_000, 10_000))
