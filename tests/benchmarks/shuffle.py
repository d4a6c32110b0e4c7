"""dedup.exact through the engine, against one group-by in memory over the same rows.

    python -m tests.benchmarks.shuffle

In memory: polars reads every shard's uid and digest at once, takes the least uid of each digest by
group_by, joins it back in order and writes one file.
The engine's shuffle writes rows by the hash of their digest, finds keepers a partition at a time,
shuffles them home and stores them in the pool's shards and order: three passes over storage, so
that memory is bounded by a partition. Each is a process of its own, on one thread.

Aim: none; it says what bounded memory and resuming cost.
Measured (2026-11-25, EPYC, 2 shared cores): 1.1x the CPU time (1.36 s against 1.24 s; 1.0x in a
run before), 0.62x the memory (241 MB against 391 MB) on a million rows in 20 shards.
"""

import hashlib
import json
import os
import resource
import shutil
import sys
from pathlib import Path
from time import process_time

from tests.benchmarks.toy import module, plan_of, run_toy, scratch

SHARDS, ROWS = 20, 50_000
STAGES = {
    "pool": {"uses": "toy.rows", "shards": SHARDS, "shard_rows": ROWS, "image_bytes": 16},
    "same": {"uses": "dedup.exact", "from": "pool"},
}


def main() -> None:
    os.environ["POLARS_MAX_THREADS"] = "1"  # of the processes below
    with scratch() as folder:
        run_toy(plan_of(STAGES), folder, workers=2)
        spent: dict[str, list[dict]] = {"memory": [], "engine": []}
        for _ in range(3):
            for name, times in spent.items():
                times.append(module("tests.benchmarks.shuffle", name, folder))
    digests = {times["digest"] for both in spent.values() for times in both}
    assert len(digests) == 1  # every row has the same keeper, in the same order
    print(f"{SHARDS * ROWS:,} rows, {spent['engine'][0]['duplicates']:,} of them duplicates")
    least = {name: min(times, key=lambda t: t["cpu_s"]) for name, times in spent.items()}
    for name, best in least.items():
        print(f"{name:<8} CPU {best['cpu_s']:6.2f} s   memory {best['grown_mb']:7.1f} MB")
    ratio = least["engine"]["cpu_s"] / least["memory"]["cpu_s"]
    memory = least["engine"]["grown_mb"] / least["memory"]["grown_mb"]
    print(f"engine: {ratio:.1f}x the CPU time, {memory:.2f}x the memory")


def measured(name: str, folder: Path) -> None:
    """One way of doing it: duplicates found, CPU seconds and the growth of the peak, as JSON."""
    import polars as pl

    plan = plan_of(STAGES)
    pool, same = (folder / plan.stages[stage].folder for stage in STAGES)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = process_time()
    if name == "engine":
        shutil.rmtree(same)
        run_toy(plan, folder, workers=0)
        cpu_s = process_time() - begun
    else:
        files = sorted(pool.glob("0*.parquet"))
        rows = pl.read_parquet(files, columns=["uid", "sha256"])
        least = rows.group_by("sha256").agg(keeper=pl.col("uid").min())
        kept = rows.join(least, on="sha256", how="left", maintain_order="left")
        keeper = pl.when(pl.col("uid") != pl.col("keeper")).then("keeper")
        kept.select("uid", duplicate_of=keeper).write_parquet(folder / "by_hand.parquet")
        cpu_s = process_time() - begun
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    made = same / "0*-*.parquet" if name == "engine" else folder / "by_hand.parquet"
    found = pl.read_parquet(made)["duplicate_of"]
    said = {
        "digest": hashlib.sha256(b"".join(uid or b"-" for uid in found)).hexdigest(),
        "duplicates": len(found) - found.null_count(),
        "cpu_s": cpu_s,
        "grown_mb": grown / 1024,
    }
    print(json.dumps(said))


if __name__ == "__main__":
    if sys.argv[1:]:
        measured(sys.argv[1], Path(sys.argv[2]))
    else:
        main()
