"""dedup.phash, minhash and semantic through the engine, one worker: time and memory by rows.

    python -m tests.benchmarks.near [full | KIND:MILLIONS[:SHAPE] ...]

`hashes`: phash at radius 3 over uniform codes, one in ten a copy with up to 4 bits turned. 300 rows
of each pool are compared with all others, so no pair within 3 bits is missed there. Shapes that are
one group: `equal`, `chain` (each 3 bits from the one before), `cube` (20 bits vary, so each code
has 1,350 within 3 bits).
`captions`: minhash at 0.7 over captions of 4 to 14 words by Zipf's law, one in ten a copy with a
word changed; SHAPE of a thousand (50) of one template. Copies as near as the floor are looked for
among the groups.
`vectors`: semantic over vectors of 64 in clusters of 2,000 to 5,000, some of which are compared
with float64's all pairs.
Storage counts: all shuffles write and read files.

Aim: exact at 50 million; memory that does not grow; a million captions of one template in a worker
of 2 GiB.
Measured (2026-11-25, EPYC, 2 shared cores, load 2 to 5; 50 million idle), one worker's CPU, its
memory in whole, the most that its journal held:

    hashes      1 M      5.4 s   461 MB     157 MB        1 M equal    1.5 s     602 MB
                3 M     15.2 s   464 MB     518 MB        1 M chain   20.6 s   1,001 MB
               10 M     57.2 s   482 MB   1,797 MB        1 M cube    28.8 s   1,213 MB
               50 M    501.3 s   473 MB   9,148 MB
    captions    1 M     30.9 s   910 MB     662 MB   485 of 485 copies found
                3 M     97.8 s   926 MB   2,072 MB   493 of 493
           1 M:1000    185.4 s 1,293 MB   2,711 MB   of one template, 4 rows kept
           0.25:800     29.3 s   761 MB     512 MB   200,000 of one template, 2 kept
    vectors     1 M      8.5 s   603 MB     303 MB
                3 M     24.6 s   623 MB     910 MB

Hashes, fitted: seconds = 4.7 * millions^1.16, and 1.35 from 10 to 50, where pieces to read (shards
times partitions) weigh; the comparisons, which grow with the square, are 2.6e8 at 50 million: 2 s.
"""

import os

os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tests.benchmarks.side_by_side import begin
from tests.benchmarks.toy import grown, measured

RADIUS, FLOOR = 3, 0.7
SHARD_ROWS = {"hashes": 250_000, "captions": 250_000, "vectors": 50_000}
STAGES: dict[str, dict[str, Any]] = {
    "hashes": {"uses": "dedup.phash", "max_distance": RADIUS},
    "captions": {"uses": "dedup.minhash", "min_jaccard": FLOOR},
    "vectors": {"uses": "dedup.semantic"},
}
LIBRARIES = {  # imported beforehand: they are no part of the growth
    "hashes": ("_hamming", "_linkage"),
    "captions": ("_hamming", "_linkage", "_minhash"),
    "vectors": ("_earlier",),
}
WIDTH, CLUSTER_ROWS = 64, 3_500
SIZES = (
    *("hashes:1", "hashes:3", "hashes:10", "hashes:1:equal", "hashes:1:chain"),
    *("hashes:1:cube", "captions:1", "captions:3", "captions:1:1000"),
    *("captions:0.25:800", "vectors:1", "vectors:3"),
)


def main(*pools: str) -> str:
    every = grown("tests.benchmarks.near", {pool: pool_of(pool) for pool in pools})
    by_pool = dict(zip(pools, every, strict=True))
    plain = [pool for pool in pools if pool.startswith("hashes:") and pool.count(":") == 1]
    uniform = [by_pool[pool]["grown_mb"] for pool in plain]
    assert not uniform or max(uniform) <= 1.5 * min(uniform), "memory is bounded by a partition"
    return "; ".join(
        f"{pool} {said['peak_mb']:.0f} MB, {said['cpu_s']:.1f} s" for pool, said in by_pool.items()
    )


def pool_of(pool: str) -> dict[str, Any]:
    kind, millions, *shape = pool.split(":")
    rows = SHARD_ROWS[kind]
    made = {"shards": round(float(millions) * 1_000_000 / rows), "shard_rows": rows}
    if kind == "hashes":
        return {"uses": "toy.codes", **made, "kind": shape[0] if shape else "uniform"}
    if kind == "captions":
        return {"uses": "toy.captions", **made, "templates": int(shape[0]) if shape else 50}
    return {"uses": "toy.vectors", **made, "width": WIDTH, "cluster_rows": CLUSTER_ROWS}


def measure(name: str, folder: Path) -> None:
    """One pool's seconds, and the peak of memory, as JSON."""
    kind, pool = name.partition(":")[0], pool_of(name)
    for library in LIBRARIES[kind]:
        import_module(f"clipmill.stages.dedup.{library}")
    near, said = measured(pool, STAGES[kind], folder)
    print(json.dumps(said | CHECKS[kind](folder, Path(near.path), pool)))


def stored(near: Path, *columns: str) -> pl.DataFrame:
    files = sorted(near.glob("0*-*.parquet"))
    return pl.concat([pl.read_parquet(file, columns=list(columns)) for file in files])


def check_hashes(folder: Path, near: Path, pool: dict[str, Any]) -> dict[str, int]:
    """Rows, and how many were joined; some rows are compared with all others first."""
    from clipmill_own.toy.codes import codes, mixed

    sampled = 300
    rows = pool["shards"] * pool["shard_rows"]
    joined_N = stored(near, "joined_at")["joined_at"].fill_null(RADIUS + 1).to_numpy()
    rank_N = mixed(np.arange(rows, dtype=np.uint64) ^ np.uint64(2**60))  # first half of the uid
    code_N = codes(pool["kind"], np.arange(rows, dtype=np.uint64), rows)
    some = np.random.default_rng(0).choice(rows, sampled // 2, replace=False)
    for row in [*some, *np.flatnonzero(joined_N <= RADIUS)[:: rows // sampled + 1]]:
        distance_N = np.bitwise_count(code_N ^ code_N[row])
        is_better_N = rank_N < rank_N[row]
        nearest = distance_N[is_better_N].min(initial=64)
        assert joined_N[row] <= nearest or nearest > RADIUS
        distance_N[row] = 64
        assert joined_N[row] > RADIUS or distance_N.min() <= joined_N[row]  # it has a neighbour
    return {"rows": rows, "joined": int((joined_N <= RADIUS).sum())}


def check_captions(folder: Path, near: Path, pool: dict[str, Any]) -> dict[str, int]:
    """Rows, how many were joined, and of some copies as near as the floor those that were found."""
    from clipmill_own.toy.captions import captions, originals
    from clipmill_own.toy.codes import uids

    rows = stored(near, "joined_at", "duplicate_of")
    total = pool["shards"] * pool["shard_rows"]
    number_N = np.arange(total, dtype=np.uint64)
    original_N = originals(number_N, total)
    copy_S = np.random.default_rng(0).choice(np.flatnonzero(original_N != number_N), 1_000)
    both_2S = np.stack([number_N[copy_S], original_N[copy_S]])
    text_2S = [captions(row_S, total, pool["templates"]).to_pylist() for row_S in both_2S]
    uid_2S = [uids(row_S).to_pylist() for row_S in both_2S]
    near_S = [len(a & b) / len(a | b) >= FLOOR for a, b in zip(*map(sets, text_2S), strict=True)]
    best_2S = [rows["duplicate_of"].gather(row_S).to_list() for row_S in both_2S]
    group_2S = [
        [best or uid for best, uid in zip(*one, strict=True)]
        for one in zip(best_2S, uid_2S, strict=True)
    ]
    same_S = [a == b for a, b in zip(*group_2S, strict=True)]
    found = sum(near and same for near, same in zip(near_S, same_S, strict=True))
    best_of_template = rows["duplicate_of"].filter(number_N % 1000 < pool["templates"])
    said = {"rows": len(rows), "joined": len(rows) - rows["joined_at"].null_count()}
    return said | {"near": sum(near_S), "found": found, "kept": best_of_template.null_count()}


def sets(texts: list[str]) -> list[set[str]]:
    return [{text[i : i + 5] for i in range(max(1, len(text) - 4))} for text in texts]


def check_vectors(folder: Path, near: Path, pool: dict[str, Any]) -> dict[str, int]:
    """Rows, and how many have a near one before them; some clusters are compared anew first."""
    [given] = (folder / "stages").glob("pool-*")
    wanted = ["uid", "image_embedding", "cluster_id", "centroid_cosine"]
    some = np.random.default_rng(0).integers(0, 200, 3).tolist()
    made = stored(near, "uid", "earlier_cosine")
    rows = pl.scan_parquet(given / "0*.parquet").select(wanted)
    rows = rows.filter(pl.col("cluster_id").is_in(some)).collect().join(made, on="uid")
    for _, cluster in rows.sort("centroid_cosine", "uid").group_by("cluster_id"):
        unit_ND = np.stack(cluster["image_embedding"].to_list()).astype(np.float64)
        unit_ND /= np.sqrt(np.vecdot(unit_ND, unit_ND))[:, None]
        cosine_NN = np.where(np.tri(len(unit_ND), k=-1), unit_ND @ unit_ND.T, -1)
        np.testing.assert_allclose(cluster["earlier_cosine"], cosine_NN.max(axis=1), atol=1e-7)
    return {"rows": len(made), "near": int((made["earlier_cosine"] > 0.95).sum())}


CHECKS = {"hashes": check_hashes, "captions": check_captions, "vectors": check_vectors}

if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(sys.argv[2], Path(sys.argv[3]))
    else:
        begin(main, quick=("hashes:1", "captions:0.25", "vectors:0.5"), full=SIZES)
