"""KMeans by distance: rows and means at any length, against brute force and faiss."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from clipmill.stages.ops.vectors.matrices import as_matrix, from_matrix, unit_rows
from tests.stages.cluster.shared import D, blobs, centroids_of, clustered, table


def brute(row_ND: np.ndarray, centre_KD: np.ndarray, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Lloyd's rounds in float64: the centres, and each row's."""
    row_ND, centre_KD = row_ND.astype(np.float64), centre_KD.astype(np.float64)
    for _ in range(rounds):
        near_N = ((row_ND[:, None] - centre_KD) ** 2).sum(axis=2).argmin(axis=1)
        centre_KD = np.array([row_ND[near_N == k].mean(axis=0) for k in range(len(centre_KD))])
    return centre_KD, ((row_ND[:, None] - centre_KD) ** 2).sum(axis=2).argmin(axis=1)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e25])
def test_rounds_are_those_of_brute_force_at_any_scale(scale, memory_shards, memory_context):
    row_ND = (blobs(800, centres=20, spread=0.5) * scale).astype(np.float32)
    ctx = memory_context()
    out = clustered(ctx, memory_shards(table(row_ND)), clusters=12, rounds=4, metric="euclidean")
    centre_KD, near_N = brute(row_ND / scale, ctx.states[0]["centre_KD"] / scale, rounds=4)
    assert out["cluster_id"].to_pylist() == near_N.tolist()
    held = centroids_of(ctx)
    np.testing.assert_allclose(as_matrix(held["centroid"]) / scale, centre_KD, atol=1e-5)
    far_N = ((row_ND / scale - centre_KD[near_N]) ** 2).sum(axis=1)
    expected = np.bincount(near_N, far_N, 12)
    np.testing.assert_allclose(np.array(held["inertia"]) / scale**2, expected, rtol=1e-5)
    assert held["rows"].to_pylist() == np.bincount(near_N).tolist()
    cosine_N = np.vecdot(unit_rows(row_ND), unit_rows(centre_KD[near_N]))
    np.testing.assert_allclose(out["centroid_cosine"], cosine_N, atol=1e-6)
    assert held.schema.metadata[b"clipmill.metric"] == b"euclidean"


def test_centroids_of_unit_rows_are_shorter_than_1(memory_shards, memory_context):
    """METHODS 2.3: DataComp's are means that are not normalised again."""
    unit_ND = unit_rows(blobs(500, centres=20, spread=0.5))
    ctx = memory_context()
    out = clustered(ctx, memory_shards(table(unit_ND)), clusters=8, metric="euclidean")
    id_N = out["cluster_id"].to_numpy()
    mean_KD = np.array([unit_ND[id_N == k].mean(axis=0, dtype=np.float64) for k in range(8)])
    held_KD = as_matrix(centroids_of(ctx)["centroid"])
    np.testing.assert_allclose(held_KD, mean_KD, atol=1e-6)
    assert np.linalg.norm(held_KD, axis=1).max() < 0.99


def test_the_objective_is_within_two_percent_of_faiss(memory_shards, memory_context):
    import faiss

    row_ND = unit_rows(blobs(4_000, centres=40, spread=0.4))
    ctx = memory_context()
    clustered(ctx, memory_shards(table(row_ND)), clusters=32, metric="euclidean")
    kmeans = faiss.Kmeans(D, 32, niter=20, seed=0, max_points_per_centroid=4_000)
    kmeans.train(row_ND)
    theirs = kmeans.index.search(row_ND, 1)[0].sum()
    assert sum(centroids_of(ctx)["inertia"].to_pylist()) < 1.02 * theirs


def test_a_zero_vector_is_a_point_and_what_is_not_finite_is_null(memory_shards, memory_context):
    row_ND = np.eye(5, D, dtype=np.float32)
    row_ND[1], row_ND[2, 0], row_ND[3, 0] = 0, np.inf, np.nan
    column = from_matrix(row_ND, np.arange(5) == 4)
    shard = table(row_ND).set_column(1, "image_embedding", column)
    out = clustered(memory_context(), memory_shards(shard), clusters=2, metric="euclidean")
    assert sorted(out["cluster_id"].to_pylist()[:2]) == [0, 1]
    assert out["centroid_cosine"].to_pylist() == [1.0, None, None, None, None]
    assert out["reason"].to_pylist() == [None, None, *["non_finite_embedding"] * 2, "no_embedding"]


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_copies_of_one_vector_end_at_once(value, memory_shards, memory_context):
    ctx = memory_context()
    same = np.full((20, D), value, np.float32)
    out = clustered(ctx, memory_shards(table(same)), clusters=4, metric="euclidean")
    assert set(out["cluster_id"].to_pylist()) == {0}
    assert pq.read_table(ctx.out / "rounds.parquet")["inertia"].to_pylist() == [0.0]


def test_a_cluster_around_zero_can_be_split(memory_shards, memory_context):
    """A share of its mean would move neither half."""
    rng = np.random.default_rng(0)
    ring_ND = np.concatenate([np.zeros((30, D)), rng.standard_normal((970, D))]).astype(np.float32)
    ring_ND[500:] = -ring_ND[30:530]
    ctx = memory_context()
    clustered(ctx, memory_shards(table(ring_ND)), clusters=8, metric="euclidean")
    assert min(centroids_of(ctx)["rows"].to_pylist()) > 0
