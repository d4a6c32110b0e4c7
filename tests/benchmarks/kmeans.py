"""Spherical k-means: a whole training and the last assignment, the stage's kernels against faiss.

    python -m tests.benchmarks.kmeans [full | ROWS ...]    30,000; full: 300,000

Same points, first centres and rounds, one thread each, CPU time. The stage's rows lie in shards of
10,000, and each round prepares its centres and adds up its sums anew for every shard; faiss holds
the points as one. Reading shards from disk is not in here. faiss sums in float32, in an order that
threads decide; the stage sums in fixed point, so that no order of rows or shards moves a bit, and
float64 decides which centre is nearest. Its inertia is asserted to be faiss's or less, to 0.1 %: it
splits empty centres in another way. Memory is the most above points and shards.

2026-11-26, one of two shared EPYC cores (Zen 5, avx512_bf16) at load 8, CPU time, 300,000 rows, 3
rounds and the assignment; ratio to faiss, least and greatest of three runs and of two:
1,000 clusters: float32 1.41 (1.33 to 1.49), bfloat16 2.39 (2.14 to 2.44); inertia 89,561, faiss
95,637. 10,000: float32 1.42 (1.37 to 1.47), bfloat16 2.49 (2.36 to 2.62); inertia 60,533, as faiss.
10,000 clusters in a process of its own: float32 147 MB, bfloat16 134 MB, faiss 84 MB. The stage's
sums are in 8 bytes a value, twice while two shards' are merged.

That is faiss as it installs: its OpenBLAS takes this processor for a Haswell and uses half of its
width, which oneDNN uses whole. Told better, by OPENBLAS_CORETYPE=SkylakeX, faiss is ahead in
float32 (30,000 rows, three runs): 1,000 clusters: float32 0.67 (0.65 to 0.69), bfloat16 1.12 (1.08
to 1.13); 4,000: float32 0.72 (0.68 to 0.72), bfloat16 1.32 (1.15 to 1.32). Without it in the same
minutes: 1.26 and 2.06; 1.27 and 2.27.
"""

import os

os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import ctypes
from collections.abc import Callable
from functools import partial, reduce
from pathlib import Path
from time import process_time
from unittest.mock import patch

import faiss
import numpy as np
import pyarrow as pa
import torch

from clipmill.stages.cluster._rounds import cell_sums, moved_centres
from clipmill.stages.ops.tables.rows import added
from clipmill.stages.ops.vectors import nearest as kernel
from clipmill.stages.ops.vectors.matrices import as_matrix, from_matrix, unit_rows
from tests.benchmarks.side_by_side import begin, side_by_side

WIDTH, ROUNDS, SHARD = 512, 3, 10_000
CLUSTERS = ((1_000, 3), (10_000, 2))  # and how often; the latter of many rows only


def vectors(rows: int) -> np.ndarray:
    """Directions about a thousand centres."""
    rng = np.random.default_rng(0)
    centre_KD = rng.standard_normal((1000, WIDTH))
    unit_ND = np.empty((rows, WIDTH), np.float32)
    for start in range(0, rows, SHARD):
        noise_BD = 0.5 * rng.standard_normal((len(unit_ND[start : start + SHARD]), WIDTH))
        of_B = rng.integers(0, len(centre_KD), len(noise_BD))
        unit_ND[start : start + SHARD] = unit_rows(centre_KD[of_B] + noise_BD)
    return unit_ND


def ours(shards: list[pa.Table], centre_KD: np.ndarray, precision: str) -> float:
    """The inertia after a training and the assignment."""
    with patch.object(kernel, "best_precision", lambda _: precision):
        for _ in range(ROUNDS):
            sums = reduce(added, (cell_sums(centre_KD, rows) for rows in shards))
            centre_KD = moved_centres(centre_KD, sums)["centre_KD"]
        found = [kernel.nearest(as_matrix(rows["unit"]), centre_KD) for rows in shards]
    return 2 * float(sum((1 - cosine_N.astype(np.float64)).sum() for _, cosine_N in found))


def theirs(unit_ND: np.ndarray, centre_KD: np.ndarray) -> float:
    means = faiss.Kmeans(
        WIDTH,
        len(centre_KD),
        niter=ROUNDS,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=len(unit_ND),
    )
    means.train(unit_ND, init_centroids=centre_KD.copy())
    cosine_N, _ = means.index.search(unit_ND, 1)
    return 2 * float((1 - cosine_N.astype(np.float64)).sum())


class Run:
    """A rival's training, whose inertia and most memory above what was held before are kept."""

    def __init__(self, train: Callable[[], float]) -> None:
        self.train, self.inertia, self.peak_mb = train, 0.0, 0.0

    def __call__(self) -> None:
        ctypes.CDLL(None).malloc_trim(0)  # glibc: what runs before have freed is given back
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak begins anew
        before = held_kb("VmRSS")
        self.inertia = self.train()
        self.peak_mb = max(self.peak_mb, (held_kb("VmHWM") - before) / 1024)


def held_kb(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def main(*sizes: int) -> str:
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    for rows in sizes:
        ratios = compare(rows)
    return f"float32 {ratios['stage, float32']}, bfloat16 {ratios['stage, bfloat16']} faiss"


def compare(rows: int) -> dict[str, str]:
    """The stage's ratios to faiss, at the most clusters."""
    unit_ND = vectors(rows)
    shards = [
        pa.table({"unit": from_matrix(unit_ND[start : start + SHARD])})
        for start in range(0, rows, SHARD)
    ]
    for clusters, repeats in CLUSTERS[: 2 if rows > 100_000 else 1]:
        start_KD = unit_ND[:clusters].copy()
        runs = {
            "faiss": Run(partial(theirs, unit_ND, start_KD)),
            "stage, float32": Run(partial(ours, shards, start_KD, "float32")),
            "stage, bfloat16": Run(partial(ours, shards, start_KD, "bfloat16")),
        }
        ours(shards[:1], start_KD, "float32")  # compiles
        ours(shards[:1], start_KD, "bfloat16")
        print(f"{rows} rows, {clusters} clusters", flush=True)
        ratios = side_by_side(rows * (ROUNDS + 1), rounds=repeats, clock=process_time, **runs)
        for name, run in runs.items():
            print(f"{name:<18}inertia {run.inertia:,.0f}, {run.peak_mb:,.0f} MB", flush=True)
        assert runs["stage, float32"].inertia == runs["stage, bfloat16"].inertia
        assert runs["stage, float32"].inertia <= 1.001 * runs["faiss"].inertia
    return ratios


if __name__ == "__main__":
    begin(main, quick=(30_000,), full=(300_000,))
