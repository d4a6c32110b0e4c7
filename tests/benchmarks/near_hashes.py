"""dedup.phash at radius 3 through the engine, one worker: time and memory as the pool grows.

    python -m tests.benchmarks.near_hashes [MILLIONS ...]       1 and 10 where none is given

Uniform codes, one row in ten a copy with up to 4 bits turned, in shards of 250,000. Storage counts:
all shuffles write and read files. 300 rows of each pool are compared with all others, so no pair
within 3 bits is missed there.

Aim: exact at 50 million; memory that does not grow.
Measured (2026-11-25, EPYC, 2 shared cores, load 5): CPU 6.0 s, 19.1 s (3 M), 68.3 s and 497.5 s at
1, 3, 10 and 50 million rows; memory grown by 251, 273, 261 and 274 MB. Fitted: seconds = 5.7 *
millions^1.13, and 1.23 from 10 to 50, where pieces to read (shards times partitions) weigh; the
comparisons, which grow with the square, are 2.6e8 at 50 million: 2 s of them.
"""

import json
import resource
import sys
from pathlib import Path
from time import perf_counter, process_time

import numpy as np

from tests.benchmarks.toy import module, plan_of, run_toy, scratch

RADIUS, SHARD_ROWS, SAMPLED = 3, 250_000, 300


def main() -> None:
    grown_mb = []
    for millions in sys.argv[1:] or ("1", "10"):
        with scratch() as folder:
            said = module("tests.benchmarks.near_hashes", "measure", millions, folder)
        print("{rows:>12,} rows {cpu_s:8.1f} s CPU {wall_s:8.1f} s".format(**said), end="")
        print("   memory {grown_mb:6.0f} MB   {joined:,} joined".format(**said), flush=True)
        grown_mb.append(said["grown_mb"])
    assert max(grown_mb) < 1.5 * grown_mb[0], "memory is bounded by a partition"


def measure(millions: int, folder: Path) -> None:
    """One pool's seconds, and the growth of the peak, as JSON."""
    pool = {"uses": "toy.codes", "shards": 4 * millions, "shard_rows": SHARD_ROWS}
    near = {"uses": "dedup.phash", "from": "pool", "max_distance": RADIUS}
    run_toy(plan_of({"pool": pool}), folder, workers=0)
    import stages.ops.hamming  # noqa: F401  # libraries are no part of the growth

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun, cpu = perf_counter(), process_time()
    state = run_toy(plan_of({"pool": pool, "near": near}), folder, workers=0)
    said = {"wall_s": perf_counter() - begun, "cpu_s": process_time() - cpu}
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    joined = checked(folder / state.stages["near"].planned.folder, 4 * millions * SHARD_ROWS)
    print(json.dumps({"rows": joined[0], "joined": joined[1], "grown_mb": grown / 1024, **said}))


def checked(near: Path, rows: int) -> tuple[int, int]:
    """Rows, and how many were joined; some rows are compared with all others first."""
    import polars as pl
    from stages.toy.codes import codes, mixed

    files = sorted(near.glob("0*-*.parquet"))
    joined = pl.concat([pl.read_parquet(file, columns=["joined_at"]) for file in files])
    joined_N = joined["joined_at"].fill_null(RADIUS + 1).to_numpy()
    rank_N = mixed(np.arange(rows, dtype=np.uint64) ^ np.uint64(2**60))  # first half of the uid
    code_N = codes(np.arange(rows, dtype=np.uint64), rows)
    some = np.random.default_rng(0).choice(rows, SAMPLED, replace=False)
    for row in [*some[: SAMPLED // 2], *np.flatnonzero(joined_N <= RADIUS)[:: rows // SAMPLED + 1]]:
        distance_N = np.bitwise_count(code_N ^ code_N[row])
        is_better_N = rank_N < rank_N[row]
        nearest = distance_N[is_better_N].min(initial=64)
        assert joined_N[row] <= nearest or nearest > RADIUS
        distance_N[row] = 64
        assert joined_N[row] > RADIUS or distance_N.min() <= joined_N[row]  # it has a neighbour
    return rows, int((joined_N <= RADIUS).sum())


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(int(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
