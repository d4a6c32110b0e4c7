"""A shuffle of one pool in more and more shards: what a shard costs beyond opening it.

    python -m tests.benchmarks.shuffle_shards [--all]

200,000 rows by the hash of a number into 4 partitions, as such a pool has, and into 40, as one of
ten million; each partition is then read. In this process, by the functions that workers run.
`opened` reads every shard and moves nothing. `a shard a run` has shards x partitions pieces, as
the layout before runs had; its pieces had a schema and an end each too, 142 us and 745 bytes a
piece as measured on 2026-11-26, which is 5.7 ms a shard at 40 partitions.

Aim: at most 1 ms a shard beyond opening it, at 100 to 10,000 shards (the last with `--all`).
Measured (2026-11-27, an EPYC without AVX-512, 2 shared cores), ms of CPU a shard beyond opening
it, its rows included, 4 and 40 partitions: 10,000 shards 0.30 and 0.75; 1,000 shards 0.67 and 0.94;
100 shards 1.7 and 2.1, which misses the aim, and 2.3 to 3.2 and 4.4 to 6.2 where each was a run, as
before. A shard a run: 1.9 and 2.5 at 10,000 shards, 2.0 and 3.9 at 1,000. A faster EPYC took 0.34
and 0.40 at 1,000 shards. On
2026-11-28, once each, idle: 100 shards 1.6 and 1.9, 1,000 shards 0.51 and 0.70; the least of five,
beside other work: 100 shards 0.91 and 1.26, 1.59 and 1.36, 1,000 shards 0.45 and 0.63, 0.77 and
0.66; the same idle: 100 shards 1.01 and 1.35, 0.85 and 1.25, 1,000 shards 0.59 and 0.69, 0.58 and
0.86. Since the keys of a segment are hashed by one call, 100 shards and 4 partitions, the least of
nine, in turns with the code that hashed shard by shard: 0.75, 1.03 and 0.86, where that took 1.38,
1.63 and 1.12; hours later 1.20, 0.90, 1.22 and 1.03, in memory 0.54. So a pool of 100 shards meets
the aim at its 4 partitions, within the noise.
"""

import os
import sys
from functools import partial
from pathlib import Path
from time import process_time
from types import SimpleNamespace

from metadata.storage import Storage
from pipeline.engine.shuffling import by_hash, put_index, runs_of, segment_bytes, split_run
from pipeline.ledger.stored import stored
from pipeline.run_folder.partitions import Partitions
from pipeline.run_folder.rows import PoolShards
from tests.benchmarks.toy import plan_of, run_toy, scratch

ROWS = 200_000
SHARDS = (100, 1_000, 10_000)
ROUNDS = 5  # of which the least counts


def main() -> None:
    os.environ["POLARS_MAX_THREADS"] = "1"
    for shards in SHARDS if "--all" in sys.argv else SHARDS[:-1]:
        with scratch() as folder:
            compare(shards, folder)


def compare(shards: int, folder: Path) -> None:
    """One pool in so many shards, moved in runs and shard by shard."""
    pool = {"uses": "toy.rows", "shards": shards, "shard_rows": ROWS // shards}
    state = run_toy(plan_of({"pool": pool}), folder, workers=2)
    rows = stored(state, "pool", {"number": ("pool", "number")})
    opened_s = min(opened(rows) for _ in range(3))
    moved(rows, runs_of([ROWS // shards] * shards), 4, folder / "first")  # which loads libraries
    print(f"{shards:,} shards: opened in {opened_s:.2f} s of CPU", flush=True)
    alone = [[shard, shard + 1] for shard in range(shards)]
    for name, runs in (("runs", runs_of([ROWS // shards] * shards)), ("a shard a run", alone)):
        for partitions in (4, 40):
            rounds = [
                moved(rows, runs, partitions, folder / f"{name}-{partitions}-{number}")
                for number in range(ROUNDS)
            ]
            moved_s, size = min(rounds)
            print(
                f"  {name:<13} {partitions:>3} partitions   CPU {moved_s:6.2f} s"
                f"   {(moved_s - opened_s) * 1000 / shards:5.2f} ms a shard beyond"
                f"   {len(runs):>5,} files, {size / 2**20:.1f} MB",
                flush=True,
            )


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
    main()
