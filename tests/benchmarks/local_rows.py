"""Rounds over stored embeddings, read each time from storage or once: `ctx.keep_local`.

    python -m tests.benchmarks.local_rows [full | SHARDS]        2; full: 6

Five rounds over vectors of 512 in shards of 10,000, each round the sum of all: on this machine's
disk, and on an S3-compatible server on loopback, whose network is as fast as memory. The first
round writes the copies, and counts; `later` is five rounds more. Sums are asserted equal, and so
are all shards.

Aim: none; a round costs what its kernel does, in the place of a download and a decoding.
Measured (2026-11-26, EPYC, 2 shared, busy cores; ratio to storage, least and greatest of five):
               kept                   later
disk, CPU      2.16 (1.92 to 2.35)    4.62 (4.55 to 4.97)
S3, CPU        2.47 (2.19 to 2.82)    5.77 (5.51 to 6.19)
S3, by clock   2.97 (2.44 to 3.95)    8.09 (6.81 to 22.82)
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter, process_time

import numpy as np
import pyarrow as pa

from clipmill.metadata.scratch import remove_shared
from clipmill.metadata.storage import Storage
from clipmill.pipeline.dataset import Shards
from clipmill.pipeline.engine.local_shards import LocalShards
from clipmill.pipeline.run_folder.state import RunState
from clipmill.stages.ops.vectors.matrices import as_matrix
from tests.benchmarks.side_by_side import begin, side_by_side
from tests.benchmarks.toy import plan_of, run_toy, scratch

ROUNDS, ROWS = 5, 10_000
POOL = {"uses": "toy.vectors", "shard_rows": ROWS, "width": 512, "cluster_rows": 100}
READER = {"uses": "cluster.kmeans", "from": "pool", "clusters": 2}


def total(rows: Shards) -> float:
    """Of all values in every round: what a kernel that costs nothing takes."""
    return sum(
        float(as_matrix(rows.table(shard)["image_embedding"]).sum(dtype=np.float64))
        for _ in range(ROUNDS)
        for shard in range(len(rows))
    )


def total_kept(rows: Shards) -> float:
    """The same of rows that are kept, from the first round on."""
    remove_shared("rows-benchmark")
    return total(LocalShards(rows, "rows-benchmark", 1))


@contextmanager
def store(folder: str) -> Iterator[Storage]:
    """An empty bucket."""
    with (
        open(f"{folder}/log", "w+", encoding="utf-8") as log,
        subprocess.Popen(
            [sys.executable, "-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
            stdout=log,
            stderr=subprocess.STDOUT,
        ) as server,
    ):
        try:
            port = ""
            while not port.isdigit():
                log.seek(0)
                port = log.read().rpartition("http://127.0.0.1:")[2].split("\n")[0]
            options = f"endpoint_override=127.0.0.1:{port}&scheme=http"
            yield Storage(f"s3://K:S@bucket/run?{options}&allow_bucket_creation=true")
        finally:
            server.kill()


def main(shards: int) -> str:
    pool = {**POOL, "shards": shards}
    plan, ratios = plan_of({"pool": pool, "it": READER}), {}
    with scratch() as folder, store(str(folder)) as bucket:
        run_toy(plan_of({"pool": pool}), folder / "run", workers=2)
        local = Storage(str(folder / "run"))
        bucket.fs.create_dir("bucket")
        for entry in local.entries(below=True):
            bucket.put(entry.name, local.read(entry.name), point="rename")
        for name, storage, clock in (
            ("disk", local, process_time),
            ("S3 on loopback", bucket, process_time),
            ("S3 on loopback, by the clock", bucket, perf_counter),
        ):
            rows = RunState(plan, storage).inputs(plan.stages["it"])
            assert total(rows) == total_kept(rows)
            for shard in range(shards):
                kept = LocalShards(rows, "rows-benchmark", 1).table(shard)
                assert kept.equals(pa.table(rows.table(shard)))
            print(name)
            ratios[name] = side_by_side(
                ROUNDS * shards * ROWS,
                rounds=5,
                clock=clock,
                storage=lambda rows=rows: total(rows),
                kept=lambda rows=rows: total_kept(rows),
                later=lambda rows=rows: total(LocalShards(rows, "rows-benchmark", 1)),
            )
        remove_shared("rows-benchmark")
    disk, far = (ratios[name]["later"] for name in ("disk", "S3 on loopback"))
    return f"later rounds {disk} the disk's CPU, {far} that of S3"


if __name__ == "__main__":
    begin(main, quick=(2,), full=(6,))
