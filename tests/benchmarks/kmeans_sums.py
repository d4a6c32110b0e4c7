"""What k-means sends through its driver, as it finds more clusters.

    python -m tests.benchmarks.kmeans_sums [full | CLUSTERS ...]    250; full: to 4,000

8,000 vectors of 512 in 32 shards, two rounds and the count at the end by two workers. Each of 32
units leaves clusters x 512 x 8 bytes of sums a pass. `driver merges` is how it was until November
2026; what both store is asserted equal. Counted is what the driver reads and stores, its own CPU
time, and its peak memory, each in a fresh process.

Aim: two tables of sums a pass through the driver (read, and stored again), whatever the units.
Measured (2026-11-27, EPYC, 2 shared cores at load 13), at 250, 1,000 and 4,000 clusters: the driver
read 116, 412 and 1,596 MB where it merges, 7, 17 and 58 MB where workers do; it stored 5, 19 and
74 MB both ways, took 0.49, 0.70 and 1.56 s of CPU against 0.43, 0.53 and 0.95, and 139, 162 and
259 MB against 138, 157 and 233. The time of a whole run hung on the load: no figure.
"""

import json
import sys
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine import context
from tests.benchmarks.side_by_side import begin
from tests.benchmarks.toy import module, plan_of, run_toy, scratch

SHARDS, SHARD_ROWS, WIDTH, ROUNDS = 32, 250, 512, 2
HERE = "tests.benchmarks.kmeans_sums"


def put_pool(folder: Path) -> None:
    """Vectors of any direction, as DataComp stores them."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for shard in range(SHARDS):
        rows = range(shard * SHARD_ROWS, (shard + 1) * SHARD_ROWS)
        row_ND = rng.standard_normal((SHARD_ROWS, WIDTH), np.float32)
        table = {"uid": [f"{row:032x}" for row in rows], "url": [f"https://test/{r}" for r in rows]}
        pq.write_table(pa.table({**table, "text": [""] * SHARD_ROWS}), folder / f"{shard}.parquet")
        np.savez(folder / f"{shard}.npz", b32_img=row_ND.astype(np.float16))


def run(pool: str, out: str, clusters: int, way: str) -> None:
    """A whole run; prints what its driver took, and a digest of what the stage stored."""
    if way == "driver merges":
        context.BY_DRIVER_BYTES = 1 << 60
    stages = {
        "pool": {"uses": "ingest.datacomp", "path": pool},
        "means": {"uses": "cluster.kmeans", "from": "pool", "column": "b32_img"}
        | {"clusters": clusters, "rounds": ROUNDS},
    }
    passed = {"read": 0, "put": 0}
    read, put = Storage.read, Storage.put

    def counted_read(folder: Storage, name: str) -> bytes:
        data = read(folder, name)
        passed["read"] += len(data)
        return data

    def counted_put(folder: Storage, name: str, data: bytes, point: str) -> None:
        passed["put"] += len(data)
        put(folder, name, data, point)

    begun, cpu = time.perf_counter(), time.process_time()
    with patch.object(Storage, "read", counted_read), patch.object(Storage, "put", counted_put):
        state = run_toy(plan_of(stages), Path(out), workers=2)
    said = {"wall_s": time.perf_counter() - begun, "cpu_s": time.process_time() - cpu}
    (peak,) = (it for it in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in it)
    sha256 = state.stages["means"].folder.sha256("out/centroids.parquet")
    print(json.dumps({**passed, **said, "peak_mb": int(peak.split()[1]) / 1024, "sha256": sha256}))


def main(*sizes: int) -> str:
    with scratch() as folder:
        put_pool(folder / "pool")
        for clusters in sizes:
            stored, read_mb = set(), []
            for way in ("driver merges", "workers merge"):
                out = folder / f"{clusters}-{way.partition(' ')[0]}"
                said = module(HERE, folder / "pool", out, clusters, way)
                stored.add(said.pop("sha256"))
                read_mb.append(said["read"] / 1e6)
                print(
                    f"{clusters:>6,} clusters, {way}: {read_mb[-1]:8.1f} MB read and"
                    f" {said['put'] / 1e6:6.1f} MB stored by the driver, {said['cpu_s']:5.2f} s of"
                    f" CPU, {said['peak_mb']:4.0f} MB at most; {said['wall_s']:5.1f} s in all",
                    flush=True,
                )
            assert len(stored) == 1
    return f"{clusters:,} clusters: the driver reads {read_mb[1]:.0f} MB, not {read_mb[0]:.0f}"


if __name__ == "__main__":
    if len(sys.argv) == 5:
        run(*sys.argv[1:3], int(sys.argv[3]), sys.argv[4])
    else:
        begin(main, quick=(250,), full=(250, 1_000, 4_000))
