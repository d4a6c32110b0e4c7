"""What two levels of clusters, and k-means++, cost and give beside one level from a sample.

    python -m tests.benchmarks.two_levels [full | ROWS ...]    15,000; full: 100,000

The stage over rows in memory, all rounds and the assignment of every row. Vectors lie about twice
as many points as there are clusters, of sizes that differ by a factor of a hundred: points drawn
apart, which is the worst for parents, and points in groups, as concepts are.
"""

import os

os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import json
import tempfile
from pathlib import Path
from time import process_time

import numpy as np
import pyarrow as pa
import torch

from clipmill.pipeline.dataset import Inputs
from clipmill.stages.cluster.kmeans import KMeans
from clipmill.stages.ops.vectors.matrices import from_matrix
from tests.benchmarks.side_by_side import begin
from tests.memory import MemoryContext, MemoryShards

WIDTH, CLUSTER_ROWS, SHARD = 128, 50, 10_000


def shards(rows: int, groups: int) -> MemoryShards:
    """Rows about points in so many groups; 0 draws the points one by one."""
    rng = np.random.default_rng(0)
    blobs = 2 * rows // CLUSTER_ROWS
    share_C = 100.0 ** rng.uniform(0, 1, blobs)
    point_CD = rng.standard_normal((blobs, WIDTH))
    if groups:
        point_CD = rng.standard_normal((groups, WIDTH))[np.arange(blobs) % groups] + 0.6 * point_CD
    blob_N = rng.choice(blobs, rows, p=share_C / share_C.sum())
    row_ND = point_CD[blob_N] + (0.4 if groups else 0.7) * rng.standard_normal((rows, WIDTH))
    uid = pa.array([number.to_bytes(16, "big") for number in range(rows)], pa.binary(16))
    whole = pa.table({"uid": uid, "image_embedding": from_matrix(row_ND)})
    return MemoryShards(*(whole[start : start + SHARD] for start in range(0, rows, SHARD)))


def main(*sizes: int) -> str:
    torch.set_num_threads(1)
    for rows in sizes:
        clusters = rows // CLUSTER_ROWS
        found = {}
        for kind, groups in (("apart", 0), ("in groups", 100)):
            print(f"points {kind}, {clusters:,} clusters of {rows:,} rows")
            found[kind] = compare(shards(rows, groups), clusters)
    told = ", ".join(f"{inertia:.2f} of points {kind}" for kind, inertia in found.items())
    return f"inertia of two levels by one's {told}"


def compare(rows: MemoryShards, clusters: int) -> float:
    """The inertia of two levels, by that of one."""
    first = None
    for settings in ({}, {"start": "kmeans++"}, {"parents": round(clusters**0.5)}):
        with tempfile.TemporaryDirectory() as folder:
            ctx = MemoryContext(Path(folder) / "stage")
            begun = process_time()
            KMeans(clusters=clusters, **settings).run(Inputs(rows=rows), ctx)
            spent = process_time() - begun
            told = json.loads((ctx.out / "clusters.json").read_text())
        first = first or (told["inertia"], spent)
        inertia, time = told["inertia"] / first[0], spent / first[1]
        print(
            f"{settings or 'one level'!s:<24} inertia {inertia:.4f}, CPU time {time:.2f}",
            flush=True,
        )
    return inertia


if __name__ == "__main__":
    begin(main, quick=(15_000,), full=(100_000,))
