"""The first centres by k-means++: every blob found, and fair draws."""

from functools import partial

import numpy as np
import pyarrow as pa
import pytest

from clipmill.metadata.uid import coin_hash, from_halves
from clipmill.stages.cluster._split import chosen, far_drawn, step_coins
from clipmill.stages.ops.vectors.matrices import from_matrix
from tests.stages.cluster.shared import centroids_of, clustered, summary_of, table

BLOBS, WIDTH = 24, 32


def separated(rows: int = 1_200) -> tuple[np.ndarray, np.ndarray]:
    """Rows about the axes, the later blobs much smaller, and the blob of each."""
    rng = np.random.default_rng(0)
    share = 0.8 ** np.arange(BLOBS)
    drawn = rng.choice(BLOBS, rows - BLOBS, p=share / share.sum())
    blob_N = np.concatenate([np.arange(BLOBS), drawn])
    noise_ND = 1e-4 * rng.standard_normal((rows, WIDTH))
    return (np.eye(BLOBS, WIDTH)[blob_N] + noise_ND).astype(np.float32), blob_N


def groups(rows: int = 1_200) -> tuple[np.ndarray, np.ndarray]:
    """Four groups of six blobs of one size, and the blob of each row."""
    blob_N = np.arange(rows) % BLOBS
    noise_ND = 1e-4 * np.random.default_rng(0).standard_normal((rows, WIDTH))
    group_ND, inside_ND = np.eye(4, WIDTH, k=28)[blob_N % 4], np.eye(BLOBS, WIDTH)[blob_N]
    return (group_ND + 0.1 * inside_ND + noise_ND).astype(np.float32), blob_N


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize(("drawn", "parents"), [(separated, None), (groups, 4)], ids=["one", "two"])
def test_every_separated_blob_gets_a_centre_of_its_own(
    metric, drawn, parents, memory_shards, memory_context
):
    row_ND, blob_N = drawn()
    met = {}
    for start in ("kmeans++", "sampled"):
        settings = {"clusters": BLOBS, "metric": metric, "parents": parents, "start": start}
        out = clustered(memory_context(), memory_shards(table(row_ND)), **settings)
        met[start] = set(zip(out["cluster_id"].to_pylist(), blob_N.tolist(), strict=True))
    assert len(met["kmeans++"]) == BLOBS
    assert {blob for _, blob in met["kmeans++"]} == {one for one, _ in met["kmeans++"]}
    assert parents or len(met["sampled"]) > BLOBS  # some blobs are split, and others together


def test_inertia_is_no_worse_than_of_a_sampled_start(memory_shards, memory_context):
    shards = memory_shards(table(separated()[0]))
    inertia = []
    for start in ("kmeans++", "sampled"):
        ctx = memory_context()
        clustered(ctx, shards, clusters=BLOBS, start=start, rounds=1)
        inertia.append(summary_of(ctx)["inertia"])
    assert inertia[0] < 0.2 * inertia[1]


@pytest.mark.parametrize("rows", [1, 20])
def test_of_few_distinct_rows_each_is_a_centre(rows, memory_shards, memory_context):
    row_ND = np.eye(3, 8, dtype=np.float32)[np.arange(rows) % 3]
    ctx = memory_context()
    out = clustered(ctx, memory_shards(table(row_ND)), clusters=6, start="kmeans++")
    assert len({*out["cluster_id"].to_pylist()}) == min(rows, 3)
    assert len(centroids_of(ctx)) == min(rows, 3)


def test_a_shard_whose_lists_say_no_width_adds_no_candidate(memory_shards, memory_context):
    row_ND = np.ones((4, 8), np.float32)
    rows = table(row_ND, first=9)
    lists = rows["image_embedding"].cast(pa.list_(pa.float32()))
    none = rows.slice(0, 2).set_column(1, "image_embedding", pa.nulls(2, lists.type))
    shards = memory_shards(none, rows.set_column(1, "image_embedding", lists))
    out = clustered(memory_context(), shards, clusters=2, start="kmeans++")
    assert out["cluster_id"].drop_null().to_pylist() == [0] * 4


def test_a_step_takes_rows_by_weight_and_squared_distance():
    """The second row of (0, 1, 2) after the first, 0: 1 of 5 times row 1, 4 of 5 times row 2."""
    row_ND = np.array([[0.0], [1.0], [2.0]], np.float32)
    taken = [
        tuple(chosen(row_ND, np.array([1, 1, 1]), np.array([0.0, coin])))
        for coin in (0, 0.19, 0.21, 0.999)
    ]
    assert taken == [(0, 1), (0, 1), (0, 2), (0, 2)]
    weighted = chosen(row_ND, np.array([1, 8, 1]), np.array([0.0, 0.6]))  # 8 of 12
    assert weighted.tolist() == [0, 1]
    assert len(chosen(row_ND[:0], np.array([]), np.array([0.5]))) == 0


def test_a_draw_takes_rows_in_proportion_to_their_squared_distance(memory_shards):
    far_N = np.repeat([1.0, 2.0, 3.0, 0.0], 5_000).astype(np.float32)
    rows = memory_shards(table(far_N[:, None]))[0]
    rows = rows.append_column("coin", [np.zeros(len(rows), np.uint64)]).append_column(
        "unit", from_matrix(far_N[:, None])
    )
    coins = partial(coin_hash, seed=0, stage="it", purpose="draw 0")
    centre = np.zeros((1, 1), np.float32)
    drawn = far_drawn(centre, "cpu", 700, 1.0, coins, rows)
    count = [int((drawn["unit_KD"][:, 0] == value).sum()) for value in (1, 2, 3, 0)]
    assert sum(count) == 700
    assert count[3] == 0
    for got, share in zip(count, (1 / 14, 4 / 14, 9 / 14), strict=False):
        assert abs(got - 700 * share) < 5 * np.sqrt(700 * share * (1 - share))


def test_coins_of_steps_differ_by_seed_stage_and_parent():
    coins = [step_coins(3, *key) for key in ((0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1))]
    assert len({tuple(coin_K) for coin_K in coins}) == 4
    assert from_halves(np.zeros((1, 2), np.uint64)).type.byte_width == 16
