"""What two levels of clusters, and k-means++, cost and give beside one level from a sample.

    python -m tests.benchmarks.two_levels

The stage over rows in memory, all rounds and the assignment of every row. Vectors lie about twice
as many directions as there are clusters, of sizes that differ by a factor of a hundred.
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

from pipeline.dataset import Inputs
from stages.cluster.kmeans import KMeans
from stages.ops.vectors import from_matrix
from tests.memory import MemoryContext, MemoryShards

ROWS, WIDTH, CLUSTERS, SHARD = 100_000, 128, 2_000, 10_000


def shards() -> MemoryShards:
    rng = np.random.default_rng(0)
    share_C = 100.0 ** rng.uniform(0, 1, 2 * CLUSTERS)
    centre_CD = rng.standard_normal((2 * CLUSTERS, WIDTH))
    blob_N = rng.choice(2 * CLUSTERS, ROWS, p=share_C / share_C.sum())
    row_ND = centre_CD[blob_N] + 0.7 * rng.standard_normal((ROWS, WIDTH))
    uid = pa.array([number.to_bytes(16, "big") for number in range(ROWS)], pa.binary(16))
    whole = pa.table({"uid": uid, "image_embedding": from_matrix(row_ND)})
    return MemoryShards(*(whole[start : start + SHARD] for start in range(0, ROWS, SHARD)))


def main() -> None:
    torch.set_num_threads(1)
    rows = shards()
    first = None
    for settings in ({}, {"start": "kmeans++"}, {"parents": 45}, {"parents": 20}):
        with tempfile.TemporaryDirectory() as folder:
            ctx = MemoryContext(Path(folder) / "stage")
            begun = process_time()
            KMeans(clusters=CLUSTERS, **settings).run(Inputs(rows=rows), ctx)
            spent = process_time() - begun
            told = json.loads((ctx.out / "clusters.json").read_text())
        first = first or (told["inertia"], spent)
        inertia, time = told["inertia"] / first[0], spent / first[1]
        print(f"{settings or 'one level'!s:<24} inertia {inertia:.4f}, CPU time {time:.2f}")


if __name__ == "__main__":
    main()
