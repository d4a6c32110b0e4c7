"""dedup.semantic through the engine, one worker: time and memory as the pool grows.

    python -m tests.benchmarks.near_vectors [full | MILLIONS ...]    0.5; full: 1 and 3

Vectors of 64 in clusters of 2,000 to 5,000. Some clusters are compared with float64's all pairs.

Measured (2026-11-25, EPYC, 2 shared cores, load 3 to 4), one worker's CPU, its memory in whole, the
most that its journal held: 8.5 s, 603 MB and 303 MB for 1 million; 24.6 s, 623 MB and 910 MB for 3.
"""

import os

os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import json
import sys
from pathlib import Path

import numpy as np

from tests.benchmarks.side_by_side import begin
from tests.benchmarks.toy import grown, measured

SHARD_ROWS, WIDTH, CLUSTER_ROWS, SAMPLED = 50_000, 64, 3_500, 3


def main(*pools: str) -> str:
    said = grown("tests.benchmarks.near_vectors", {pool: pool_of(pool) for pool in pools})[-1]
    return "{peak_mb:.0f} MB, {cpu_s:.1f} s of {rows:,} rows".format(**said)


def pool_of(millions: str) -> dict:
    shards = round(float(millions) * 1_000_000 / SHARD_ROWS)
    shape = {"width": WIDTH, "cluster_rows": CLUSTER_ROWS}
    return {"uses": "toy.vectors", "shards": shards, "shard_rows": SHARD_ROWS, **shape}


def measure(millions: str, folder: Path) -> None:
    """One pool's seconds, and the peak of memory, as JSON."""
    from clipmill.stages.dedup import _earlier  # noqa: F401  # libraries are no part of the growth

    stored, said = measured(pool_of(millions), {"uses": "dedup.semantic"}, folder)
    [pool] = (folder / "stages").glob("pool-*")
    print(json.dumps(said | checked(pool, Path(stored.path))))


def checked(pool: Path, near: Path) -> dict[str, int]:
    """Rows, and how many have a near one before them; some clusters are compared anew first."""
    import polars as pl

    wanted = ["uid", "image_embedding", "cluster_id", "centroid_cosine"]
    some = np.random.default_rng(0).integers(0, 200, SAMPLED).tolist()
    rows = pl.scan_parquet(pool / "0*.parquet").select(wanted)
    stored = pl.read_parquet(near / "0*.parquet", columns=["uid", "earlier_cosine"])
    rows = rows.filter(pl.col("cluster_id").is_in(some)).collect().join(stored, on="uid")
    for _, cluster in rows.sort("centroid_cosine", "uid").group_by("cluster_id"):
        unit_ND = np.stack(cluster["image_embedding"].to_list()).astype(np.float64)
        unit_ND /= np.sqrt(np.vecdot(unit_ND, unit_ND))[:, None]
        cosine_NN = np.where(np.tri(len(unit_ND), k=-1), unit_ND @ unit_ND.T, -1)
        np.testing.assert_allclose(cluster["earlier_cosine"], cosine_NN.max(axis=1), atol=1e-7)
    return {"rows": len(stored), "near": int((stored["earlier_cosine"] > 0.95).sum())}


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(sys.argv[2], Path(sys.argv[3]))
    else:
        begin(main, quick=("0.5",), full=("1", "3"))
