"""Selecting by clusters, through the engine, beside plain scripts on the same stored columns.

    python -m tests.benchmarks.prune [full | ROWS ...]    20,000; full: to 180,000

A script holds the pool in memory and ends at one Parquet of verdicts; a stage keeps a journal, and
stores verdicts, ranks and reasons by shard, so that it resumes, and needs one partition in memory.
What they keep is asserted equal in the same run: row for row, for `density` to a row a cluster (the
script rounds quotas), first ones first. In one process, CPU time. Last, how near the quotas of a
large tree come to their targets.

Measured (2026-11-26, EPYC, one of two shared cores at load 8 to 12), median of five, ratio to
the script at 20,000, 60,000 and 180,000 rows: sample 0.16, 0.24, 0.26; prototypes 0.12, 0.19, 0.21;
density 0.13, 0.19, 0.25; balanced_tree 0.10, 0.13, 0.21, spreads of 0.01 to 0.08. A stage takes 1.6
to 2.7 us a row at 180,000, half of it in two shuffles; the script reads and sorts.
"""

import os

os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
os.environ.update(POLARS_MAX_THREADS="1")

import shutil
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.metadata.uid import coin_hash, from_halves
from clipmill.stages.ops.vectors.centroids import Centroids, to_table
from clipmill.stages.ops.vectors.matrices import unit_rows
from clipmill.stages.select._tree import Tree
from tests.benchmarks.side_by_side import begin, side_by_side
from tests.benchmarks.toy import fill, plan_of, run_toy, scratch

SHARD_ROWS, WIDTH, CLUSTER_ROWS, ROUNDS = 10_000, 64, 250, 5
LEVELS, LLOYD_ROUNDS = (40, 8), 20
KEPT = 0.3
TAU, BALANCE, NEIGHBOURS = 0.1, 0.5, 20

Frame = pl.DataFrame


def columns(folder: Path) -> Frame:
    """The stored columns that selects read."""
    [pool] = (folder / "stages").glob("pool-*")
    return pl.read_parquet(
        pool / "0*.parquet", columns=["uid", "cluster_id", "centroid_cosine"], glob=True
    )


def coins(rows: Frame, stage: str, purpose: str) -> np.ndarray:
    uid = rows["uid"].to_arrow().cast(pa.binary()).cast(pa.binary(16))
    return coin_hash(uid, seed=0, stage=stage, purpose=purpose)


def in_cluster(rows: Frame, *keys: str) -> Frame:
    """With `place`, from 1, of each row among those of its cluster."""
    place = pl.int_range(1, pl.len() + 1).over("cluster_id")
    return rows.sort("cluster_id", *keys, "uid").with_columns(place=place)


def sample(folder: Path, vector_KD: np.ndarray, wanted: int) -> Frame:
    rows = columns(folder)
    rows = rows.with_columns(coin=coins(rows, "sample", "sample"))
    return rows.sort("coin", "uid").head(wanted)


def prototypes(folder: Path, vector_KD: np.ndarray, wanted: int) -> Frame:
    rows = in_cluster(columns(folder), "centroid_cosine")
    number = pl.col("cluster_id").rank("dense").cast(pl.Int64) - 1
    rounds, turns = divmod(int(BALANCE * wanted), rows["cluster_id"].n_unique())
    rows = rows.with_columns(is_first=pl.col("place") <= rounds + (number < turns))
    first = rows.filter("is_first")
    rest = rows.filter(~pl.col("is_first")).sort("centroid_cosine", "uid")
    return pl.concat([first, rest.head(wanted - len(first))])


def density(folder: Path, vector_KD: np.ndarray, wanted: int) -> Frame:
    rows = in_cluster(columns(folder), "centroid_cosine")
    by_cluster = rows.group_by("cluster_id").agg(
        size=pl.len(), intra=(1 - pl.col("centroid_cosine").cast(pl.Float64)).mean()
    )
    by_cluster = by_cluster.sort("cluster_id")
    unit_KD = unit_rows(vector_KD).astype(np.float64)
    apart_KK = 1 - unit_KD @ unit_KD.T
    np.fill_diagonal(apart_KK, np.inf)
    inter_K = np.sort(apart_KK, axis=1)[:, :NEIGHBOURS].mean(axis=1)
    complexity_K = by_cluster["intra"].to_numpy() * inter_K
    p_K = np.exp((complexity_K - complexity_K.max()) / TAU)
    p_K /= p_K.sum()
    size_K = by_cluster["size"].to_numpy()
    least_K = np.minimum(BALANCE * wanted / len(p_K), size_K - 1)
    low, high = -float(wanted), float(wanted)
    for _ in range(100):
        level = (low + high) / 2
        quota_K = np.clip(wanted * p_K + level, least_K, size_K)
        low, high = (level, high) if quota_K.sum() < wanted else (low, level)
    by_cluster = by_cluster.with_columns(quota=np.floor(quota_K + 0.5))
    kept = rows.join(by_cluster.select("cluster_id", "quota"), on="cluster_id")
    return kept.filter(pl.col("place") <= pl.col("quota"))


def balanced_tree(folder: Path, vector_KD: np.ndarray, wanted: int) -> Frame:
    rows = columns(folder)
    rows = in_cluster(rows.with_columns(coin=coins(rows, "balanced_tree", "leaf")), "coin")
    size_C = np.bincount(rows["cluster_id"], minlength=len(vector_KD))
    point_ND, levels = vector_KD.astype(np.float64), []
    for height, count in enumerate(LEVELS):
        point_ND, parent_N = lloyd(point_ND, count, height)
        levels.append((parent_N, size_C))
        size_C = np.bincount(parent_N, size_C, count).astype(int)
    levels.append((np.zeros(len(size_C), int), size_C))
    target_P = np.array([wanted])
    for parent_C, size_C in reversed(levels):
        quota_C = np.zeros(len(size_C), int)
        for parent, target in enumerate(target_P.tolist()):
            below = np.flatnonzero(parent_C == parent)
            quota_C[below] = shares(size_C[below], target)
        target_P = quota_C
    quota_N = target_P[rows["cluster_id"].to_numpy()]
    return rows.filter(rows["place"] <= pl.Series(quota_N))


def shares(size_C: np.ndarray, target: int) -> np.ndarray:
    """min(x, size) with the x that brings the sum nearest to the target, the greater of two."""
    low, high = 0, int(size_C.max(initial=0))
    while low < high:
        x = (low + high + 1) // 2
        both = np.minimum(x, size_C).sum() + np.minimum(x - 1, size_C).sum()
        low, high = (x, high) if both <= 2 * target else (low, x - 1)
    return np.minimum(low, size_C)


def lloyd(point_ND: np.ndarray, count: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Spherical k-means from the points of the lowest coins; a node left empty stays."""
    number_N2 = np.stack([np.full(len(point_ND), height), np.arange(len(point_ND))], axis=1)
    coin_N = coin_hash(
        from_halves(number_N2.astype(np.uint64)), seed=0, stage="balanced_tree", purpose="levels"
    )
    node_LD = point_ND[coin_N.argsort(kind="stable")[:count]]
    for _ in range(LLOYD_ROUNDS):
        index_N = (point_ND @ node_LD.T).argmax(axis=1)
        sum_LD = np.zeros_like(node_LD)
        np.add.at(sum_LD, index_N, point_ND)
        assert len(np.unique(index_N)) == count, "no empty node in this pool"
        moved_LD = unit_rows(sum_LD).astype(np.float64)
        if (moved_LD == node_LD).all():
            break
        node_LD = moved_LD
    return node_LD, (point_ND @ node_LD.T).argmax(axis=1)


def script(rule: Callable[..., Frame], folder: Path, vector_KD: np.ndarray, wanted: int) -> Frame:
    """The rows kept, and a file that says so of each."""
    kept = rule(folder, vector_KD, wanted)
    keep = (
        columns(folder).select("uid").with_columns(keep=pl.col("uid").is_in(kept["uid"].implode()))
    )
    keep.write_parquet(folder / "plain.parquet")
    return kept.select("uid", "cluster_id")


def through_engine(pool: dict[str, Any], stage: dict[str, Any], folder: Path) -> Frame:
    """The rows that the stage keeps, computed anew."""
    name = stage["uses"].removeprefix("select.")
    for old in (folder / "stages").glob(f"{name}-*"):
        shutil.rmtree(old)
    run_toy(plan_of({"pool": pool, name: {"from": "pool", **stage}}), folder, workers=0)
    [made] = (folder / "stages").glob(f"{name}-*")
    stored = pl.read_parquet(made / "0*.parquet", columns=["uid", "keep"]).filter("keep")
    return stored.select("uid")


def centroids(folder: Path) -> np.ndarray:
    """(K, D) the mean direction of each cluster's rows, in folder/centroids.parquet too."""
    [pool] = (folder / "stages").glob("pool-*")
    rows = pl.read_parquet(pool / "0*.parquet", columns=["image_embedding", "cluster_id"])
    vector_ND = np.stack(rows["image_embedding"].to_numpy()).astype(np.float64)
    sum_KD = np.zeros((rows["cluster_id"].max() + 1, WIDTH))
    np.add.at(sum_KD, rows["cluster_id"].to_numpy(), vector_ND)
    vector_KD, rows_K = unit_rows(sum_KD), np.bincount(rows["cluster_id"])
    held = Centroids(vector=vector_KD, rows=rows_K, inertia=np.zeros(len(rows_K)))
    pq.write_table(to_table(held), folder / "centroids.parquet")
    return vector_KD


def near() -> float:
    """How far off a thousandth of a billion rows is in a drawn tree; prints more."""
    rng = np.random.default_rng(0)
    counts = [1_000_000, 50_000, 5_000, 500]
    rows_K = (rng.pareto(1.2, counts[0]) * 300).astype(np.int64) + 1
    parents = [rng.integers(0, b, a).astype(np.int32) for a, b in pairwise(counts)]
    tree = Tree.over(rows_K, parents, counts[1:])
    for share in (0.5, 0.1, 0.01, 0.001):
        begun = process_time()
        off = tree.quotas(int(share * tree.rows))[0].sum() / int(share * tree.rows) - 1
        spent_s = process_time() - begun
        print(f"{share:6} of {tree.rows:,} rows: {off:+.4%} kept{spent_s:8.2f} s")
    leaf_N = np.sort(rng.integers(0, counts[0], 250_000))
    begun = process_time()
    tree.least_target(leaf_N, rng.integers(1, rows_K[leaf_N] + 1))
    print(f"ranks of a partition of 250,000 rows {process_time() - begun:8.2f} s")
    return off


def main(*sizes: int) -> str:
    for rows in sizes:
        shape = {"shards": rows // SHARD_ROWS, "shard_rows": SHARD_ROWS, "width": WIDTH}
        pool = {"uses": "toy.vectors", **shape, "cluster_rows": CLUSTER_ROWS}
        wanted = int(KEPT * rows)
        with scratch() as folder:
            fill(pool, folder)
            vector_KD = centroids(folder)
            given = {"centroids": str(folder / "centroids.parquet"), "rows": wanted}
            stages = {
                sample: {"rows": wanted},
                prototypes: {"rows": wanted},
                density: given,
                balanced_tree: {**given, "levels": list(LEVELS), "rounds": LLOYD_ROUNDS},
            }
            print(f"{rows:,} rows in {len(vector_KD):,} clusters")
            found: dict[str, str] = {}
            for rule, settings in stages.items():
                plain = partial(script, rule, folder, vector_KD, wanted)
                stage = {"uses": f"select.{rule.__name__}", **settings}
                ours = partial(through_engine, pool, stage, folder)
                check(rule.__name__, plain(), ours(), columns(folder))
                rivals = {"script": plain, rule.__name__: ours}
                found |= side_by_side(rows, ROUNDS, process_time, **rivals)
    del found["script"]
    told = ", ".join(f"{name} {ratio}" for name, ratio in found.items())
    return f"{told} a script; a thousandth of a tree {near():+.1%}"


def check(rule: str, plain: Frame, ours: Frame, rows: Frame) -> None:
    """What both keep is the same."""
    if rule != "density":
        assert sorted(plain["uid"]) == sorted(ours["uid"]), rule
        return
    counts = []
    for kept in (plain, rows.join(ours, on="uid", how="semi")):
        counts.append(np.bincount(kept["cluster_id"], minlength=rows["cluster_id"].max() + 1))
    assert np.abs(counts[0] - counts[1]).max() <= 1
    both = plain.join(ours, on="uid", how="semi")
    assert len(both) == np.minimum(*counts).sum(), "the first of each cluster"


if __name__ == "__main__":
    begin(main, quick=(20_000,), full=(20_000, 60_000, 180_000))
