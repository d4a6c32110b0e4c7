"""dedup.phash at radius 3 through the engine, one worker: time and memory as the pool grows.

    python -m tests.benchmarks.near_hashes [full | MILLIONS[:KIND] ...]

Uniform codes, one row in ten a copy with up to 4 bits turned, in shards of 250,000. Storage counts:
all shuffles write and read files. 300 rows of each pool are compared with all others, so no pair
within 3 bits is missed there. Kinds that are one group: `equal`, `chain` (each 3 bits from the one
before), `cube` (20 bits vary, so each code has 1,350 within 3 bits).

Aim: exact at 50 million; memory that does not grow.
Measured (2026-11-25, EPYC, 2 shared cores, load 2 to 3; 50 million idle), one worker's CPU, its
memory in whole, the most that its journal held:

     1 M      5.4 s   461 MB     157 MB        1 M equal    1.5 s     602 MB
     3 M     15.2 s   464 MB     518 MB        1 M chain   20.6 s   1,001 MB
    10 M     57.2 s   482 MB   1,797 MB        1 M cube    28.8 s   1,213 MB
    50 M    501.3 s   473 MB   9,148 MB

Fitted: seconds = 4.7 * millions^1.16, and 1.35 from 10 to 50, where pieces to read (shards times
partitions) weigh; the comparisons, which grow with the square, are 2.6e8 at 50 million: 2 s.
"""

import json
import sys
from pathlib import Path

import numpy as np

from tests.benchmarks.side_by_side import begin
from tests.benchmarks.toy import grown, measured

RADIUS, SHARD_ROWS, SAMPLED = 3, 250_000, 300


def main(*pools: str) -> str:
    every = grown("tests.benchmarks.near_hashes", {pool: pool_of(pool) for pool in pools})
    uniform = [said for pool, said in zip(pools, every, strict=True) if ":" not in pool]
    grown_mb = [said["grown_mb"] for said in uniform]
    assert max(grown_mb) <= 1.5 * min(grown_mb), "memory is bounded by a partition"
    return "no pair missed; {peak_mb:.0f} MB, {cpu_s:.1f} s of {rows:,} rows".format(**uniform[-1])


def pool_of(pool: str) -> dict:
    millions, _, kind = pool.partition(":")
    shards = round(float(millions) * 1_000_000 / SHARD_ROWS)
    made = {"uses": "toy.codes", "shards": shards, "shard_rows": SHARD_ROWS}
    return {**made, "kind": kind or "uniform"}


def measure(name: str, folder: Path) -> None:
    """One pool's seconds, and the peak of memory, as JSON."""
    from clipmill.stages.dedup import _hamming, _linkage  # noqa: F401  # libraries are no part of the growth

    pool = pool_of(name)
    stored, said = measured(pool, {"uses": "dedup.phash", "max_distance": RADIUS}, folder)
    rows, joined = checked(Path(stored.path), pool["shards"] * SHARD_ROWS, pool["kind"])
    print(json.dumps({"rows": rows, "joined": joined, **said}))


def checked(near: Path, rows: int, kind: str) -> tuple[int, int]:
    """Rows, and how many were joined; some rows are compared with all others first."""
    import polars as pl
    from clipmill_own.toy.codes import codes, mixed

    files = sorted(near.glob("0*-*.parquet"))
    joined = pl.concat([pl.read_parquet(file, columns=["joined_at"]) for file in files])
    joined_N = joined["joined_at"].fill_null(RADIUS + 1).to_numpy()
    rank_N = mixed(np.arange(rows, dtype=np.uint64) ^ np.uint64(2**60))  # first half of the uid
    code_N = codes(kind, np.arange(rows, dtype=np.uint64), rows)
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
        measure(sys.argv[2], Path(sys.argv[3]))
    else:
        begin(main, quick=("1",), full=("1", "3", "10", "1:equal", "1:chain", "1:cube"))
