"""Peak memory of a run against its number of shards: of the driver, and of its greatest worker.

    python -m tests.benchmarks.memory_slope

Each run is a process of its own: a pool of 500-row shards with images of 20 kB, a row stage,
dedup.exact, select.where and export.parquet, on two workers. A run holds a few hundred bytes a
shard (states and records) and nothing of its rows; so the peaks should hardly move.

Aim: less than 0.1 MB a shard.
Measured (2026-11-25): 0.094 MB a shard for the driver (167, 172 and 176 MB at 10, 30 and 100
shards), 0.048 MB for a worker (339, 344 and 344 MB). From 100 to 300 shards a worker grows by
0.13 MB a shard (341 to 368 MB): the four partitions of dedup.exact hold a quarter of the rows until
they are full, at 250,000 rows each, it seems: with partitions of 12,500 rows it is 0.05 MB (341 to
351 MB). At 300 shards both are one run each.
Export files are sized to fill by 10 shards; a first design, whose files filled at 20 only, gave a
worker 0.93 MB.
"""

import json
import resource
import sys
from pathlib import Path

import numpy as np

from tests.benchmarks.toy import module, plan_of, run_toy, scratch

SHARDS = (10, 30, 100)
ROWS, IMAGE_BYTES = 500, 20_000


def main() -> None:
    peaks = []
    for count in SHARDS:
        with scratch() as folder:
            peaks.append(module("tests.benchmarks.memory_slope", count, folder))
        print(f"{count:>4} shards: driver {peaks[-1]['driver']:6.1f} MB", end="   ")
        print(f"greatest worker {peaks[-1]['worker']:6.1f} MB")
    for who in ("driver", "worker"):
        slope, _ = np.polyfit(SHARDS, [peak[who] for peak in peaks], 1)
        print(f"{who}: {slope:.3f} MB a shard of {ROWS * IMAGE_BYTES / 1e6:.0f} MB")


def one_run(shards: int, folder: Path) -> None:
    """The run, and its peaks in MB as JSON."""
    plan = plan_of(
        {
            "pool": {
                "uses": "toy.rows",
                "shards": shards,
                "shard_rows": ROWS,
                "image_bytes": IMAGE_BYTES,
            },
            "affine": {"uses": "toy.affine", "from": "pool"},
            "same": {"uses": "dedup.exact", "from": "pool"},
            "subset": {
                "uses": "select.where",
                "from": ["affine", "same"],
                "where": "duplicate_of IS NULL AND affine > 200000",
            },
            # An output file takes whole source shards: here five, so that ten show its full size.
            "shards": {"uses": "export.parquet", "from": "subset", "rows_per_shard": 5 * ROWS},
        }
    )
    run_toy(plan, folder, workers=2)
    kilobytes = {
        "driver": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "worker": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,
    }
    print(json.dumps({who: peak / 1024 for who, peak in kilobytes.items()}))


if __name__ == "__main__":
    if sys.argv[1:]:
        one_run(int(sys.argv[1]), Path(sys.argv[2]))
    else:
        main()
