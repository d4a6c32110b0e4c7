"""A shuffle of one pool in more and more shards: what a shard costs beyond opening it.

    python -m tests.benchmarks.shuffle_shards [full | SHARDS ...]    100; full: to 10,000

200,000 rows by the hash of a number into 4 partitions, as such a pool has, and into 40, as one of
ten million; each partition is then read. In this process, by the functions that workers run.
`opened` reads every shard and moves nothing.

Aim: at most 1 ms a shard beyond opening it, at 100 to 10,000 shards.
Measured (2026-11-27 and 28, an EPYC without AVX-512, 2 shared cores), ms of CPU a shard beyond
opening it, its rows included, 4 and 40 partitions: 10,000 shards 0.30 and 0.75; 1,000 shards 0.51
to 0.77 and 0.63 to 0.94; 100 shards 0.75 to 1.22 at 4, 1.25 to 1.36 at 40, by the hour. A faster
EPYC took 0.34 and 0.40 at 1,000 shards. So a pool of 100 shards meets the aim at its 4 partitions,
within the noise.
"""

import os
from functools import partial
from pathlib import Path
from time import process_time
from types import SimpleNamespace

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.shuffling import by_hash, put_index, runs_of, segment_bytes, split_run
from clipmill.pipeline.ledger.rows.stored import stored
from clipmill.pipeline.run_folder.partitions import Partitions
from clipmill.pipeline.run_folder.rows import PoolShards
from tests.benchmarks.side_by_side import begin, rounds_of
from tests.benchmarks.toy import plan_of, run_toy, scratch

ROWS = 200_000
ROUNDS = 5  # of which the least counts


def main(*sizes: int) -> str:
    os.environ["POLARS_MAX_THREADS"] = "1"
    for shards in sizes:
        with scratch() as folder:
            beyond_ms = compare(shards, folder)
    return f"{beyond_ms:.2f} ms a shard of {shards:,} beyond opening it"


def compare(shards: int, folder: Path) -> float:
    """Returns milliseconds a shard beyond opening it, into 40 partitions."""
    pool = {"uses": "toy.rows", "shards": shards, "shard_rows": ROWS // shards}
    state = run_toy(plan_of({"pool": pool}), folder, workers=2)
    rows = stored(state, "pool", {"number": ("pool", "number")})
    opened_s = min(opened(rows) for _ in range(3))
    runs = runs_of([ROWS // shards] * shards)
    moved(rows, runs, 4, folder / "first")  # which loads libraries
    print(f"{shards:,} shards: opened in {opened_s:.2f} s of CPU", flush=True)
    for partitions in (4, 40):
        moved_s, size = min(
            moved(rows, runs, partitions, folder / f"{partitions}-{number}")
            for number in range(rounds_of(ROUNDS))
        )
        beyond_ms = (moved_s - opened_s) * 1000 / shards
        print(
            f"  {partitions:>3} partitions   CPU {moved_s:6.2f} s   {beyond_ms:5.2f} ms a shard"
            f" beyond   {len(runs):>5,} files, {size / 2**20:.1f} MB",
            flush=True,
        )
    return beyond_ms


def opened(rows: PoolShards) -> float:
    """CPU seconds of reading every shard."""
    begun = process_time()
    for shard in range(len(rows)):
        rows.table(shard)
    return process_time() - begun


def moved(rows: PoolShards, runs: list[list[int]], count: int, folder: Path) -> tuple[float, int]:
    """CPU seconds of a shuffle and of reading its partitions; the bytes that it left."""
    storage, begun = Storage(str(folder)), process_time()
    key = partial(by_hash, "number", count)
    work = partial(split_run, rows, key, count, "data", segment_bytes(2))
    results = [
        work(run, SimpleNamespace(folder=storage, key=f"{number:06d}"))
        for number, run in enumerate(runs)
    ]
    index = put_index(storage, "data", results, count)
    files = tuple(one["file"] for one in results for _ in range(one["segments"]))
    parts = Partitions(storage, "data", files, index, count)
    assert sum(len(parts.table(number)) for number in range(count)) == ROWS
    spent_s = process_time() - begun
    return spent_s, sum(path.stat().st_size for path in (folder / "data").iterdir())


if __name__ == "__main__":
    begin(main, quick=(100,), full=(100, 1_000, 10_000))
