"""KMeans: blobs found, faiss matched, and nothing that depends on a restart."""

import re
from dataclasses import replace
from functools import partial, reduce

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.uid import coin_hash
from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.stages.cluster._rounds import Space, cell_sums, moved_centres
from clipmill.stages.cluster.kmeans import KMeans
from clipmill.stages.ops.tables.rows import added
from clipmill.stages.ops.vectors.matrices import as_matrix, from_matrix, unit_rows
from clipmill.stages.ops.vectors.nearest import nearest
from tests.stages.cluster.shared import VALUES, D, blobs, clustered, summary_of, table


def test_separated_blobs_are_the_clusters(memory_shards, memory_context):
    uid = table(np.ones((600, D), np.float32))["uid"]
    coin_N = coin_hash(uid, seed=0, stage="it", purpose="train")
    blob_N = coin_N.argsort().argsort() % 5  # so that the five lowest coins are one of each
    noise_ND = 0.05 * np.random.default_rng(0).standard_normal((600, D))
    row_ND = (np.eye(5, D)[blob_N] + noise_ND).astype(np.float32)
    out = clustered(memory_context(seed=0), memory_shards(table(row_ND)), clusters=5)
    assert out["cluster_id"].to_pylist() == blob_N.tolist()
    assert min(out["centroid_cosine"].to_pylist()) > 0.9


def test_every_row_has_its_nearest_final_centre(memory_shards, memory_context):
    row_ND = blobs(2_000, centres=30, spread=0.5)
    ctx = memory_context()
    out = clustered(ctx, memory_shards(table(row_ND)), clusters=20, rounds=3)
    centre_KD = ctx.states[-1]["centre_KD"].astype(np.float64)
    cosine_NK = unit_rows(row_ND).astype(np.float64) @ centre_KD.T
    assert out["cluster_id"].to_pylist() == cosine_NK.argmax(axis=1).tolist()
    np.testing.assert_allclose(out["centroid_cosine"], cosine_NK.max(axis=1), atol=1e-7)


def test_the_objective_is_within_two_percent_of_faiss(memory_shards, memory_context):
    import faiss

    row_ND = blobs(4_000, centres=40, spread=0.4)
    out = clustered(memory_context(), memory_shards(table(row_ND)), clusters=32)
    kmeans = faiss.Kmeans(D, 32, niter=20, spherical=True, seed=0, max_points_per_centroid=4_000)
    kmeans.train(unit_rows(row_ND))
    theirs = kmeans.index.search(unit_rows(row_ND), 1)[0].mean()
    ours = np.mean(out["centroid_cosine"].to_numpy())
    assert 1 - ours < 1.02 * (1 - theirs)


def test_centroids_sizes_and_inertia_are_those_of_the_rows(memory_shards, memory_context):
    row_ND = blobs(2_000, centres=30, spread=0.5)
    row_ND[7] = np.nan
    ctx = memory_context()
    out = clustered(ctx, memory_shards(table(row_ND)), clusters=20, rounds=3, train_fraction=0.5)
    held = pq.read_table(ctx.out / "centroids.parquet")
    assert held["cluster_id"].to_pylist() == list(range(20))
    assert np.array_equal(as_matrix(held["centroid"]), ctx.states[-1]["centre_KD"])
    id_N = out["cluster_id"].drop_null().to_numpy()
    assert held["rows"].to_pylist() == np.bincount(id_N, minlength=20).tolist()
    far_N = 2 - 2 * out["centroid_cosine"].drop_null().to_numpy().astype(float)
    np.testing.assert_allclose(held["inertia"], np.bincount(id_N, far_N, 20), atol=1e-4)


def test_inertia_falls_by_round_to_what_the_rows_end_at(memory_shards, memory_context):
    ctx = memory_context()
    row_ND = blobs(2_000, centres=30, spread=0.5)
    out = clustered(ctx, memory_shards(table(row_ND)), clusters=20, rounds=4)
    held = pq.read_table(ctx.out / "rounds.parquet")
    assert held["round"].to_pylist() == [0, 1, 2, 3]
    assert held["rows"].to_pylist() == [2_000] * 4
    end = (2 - 2 * out["centroid_cosine"].to_numpy().astype(float)).sum()
    by_round = [*held["inertia"].to_pylist(), end]
    assert by_round == sorted(by_round, reverse=True)


def test_sums_of_parts_are_the_sum_of_the_whole_to_the_bit():
    unit_ND = unit_rows(blobs(1_000, centres=12, spread=0.5))
    coin = pa.array(np.zeros(1_000, np.uint64))
    rows = pa.table({"coin": coin, "unit": from_matrix(unit_ND)})
    sums = partial(cell_sums, unit_ND[:3])
    whole = sums(rows)
    parts = reduce(added, [sums(rows[start : start + 7]) for start in range(0, 1_000, 7)])
    for name in ("sum_KD", "count_K"):
        assert whole[name].dtype == np.int64
        np.testing.assert_array_equal(whole[name], parts[name])
    index_N = nearest(unit_ND, unit_ND[:3])[0][:, 0]
    first_D = unit_ND[index_N == 0].sum(axis=0, dtype=np.float64)
    np.testing.assert_allclose(whole["sum_KD"][0] / 2.0**30, first_D, atol=1e-6)


def test_the_seed_chooses_the_start(memory_shards, memory_context):
    row_ND = blobs(300, centres=12, spread=0.5)
    first, again, other = (
        clustered(memory_context(seed), memory_shards(table(row_ND)), clusters=8)
        for seed in (0, 0, 1)
    )
    assert first.equals(again)
    assert not first["cluster_id"].equals(other["cluster_id"])


def test_a_run_stopped_after_any_round_ends_as_an_unbroken_one(memory_shards, memory_context):
    shards = memory_shards(table(blobs(500, centres=12, spread=0.5)))
    unbroken = memory_context()
    expected = clustered(unbroken, shards, clusters=10, rounds=5)
    for kept in range(1, 6):
        resumed = memory_context()
        resumed.states = unbroken.states[:kept]
        assert clustered(resumed, shards, clusters=10, rounds=5).equals(expected)
        assert len(resumed.states) == 6


def test_rows_without_a_direction_are_null_with_a_reason(memory_shards, memory_context):
    row_ND = np.eye(4, D, dtype=np.float32)
    column = from_matrix(row_ND, np.array([0, 1, 0, 0], bool)).to_pylist()
    column[2], column[3] = [0.0] * D, [np.nan] * D
    shard = table(row_ND).set_column(
        1, "image_embedding", pa.array(column, pa.list_(pa.float32(), D))
    )
    out = clustered(memory_context(), memory_shards(shard), clusters=3).to_pydict()
    assert out["cluster_id"] == [0, None, None, None]
    assert out["centroid_cosine"] == [1.0, None, None, None]
    assert out["reason"] == [None, "no_embedding", *["zero_or_nan_embedding"] * 2]


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_where_more_than_a_tenth_have_none_the_column_is_refused(
    memory_shards, memory_context, bad
):
    row_ND = blobs(70, centres=3, spread=0.5)
    row_ND[:8] = bad
    column = from_matrix(row_ND, np.zeros(70, bool))
    shard = table(row_ND).set_column(1, "image_embedding", column)
    with pytest.raises(StageError, match="8 of 70 vectors are zero or not finite") as error:
        clustered(memory_context(), memory_shards(shard), clusters=3)
    assert error.value.args[1] == "column 'image_embedding'"
    few = shard.slice(1)  # 7 of 69: a tenth, and a little
    with pytest.raises(StageError, match="7 of 69"):
        clustered(memory_context(), memory_shards(few), clusters=3)
    out = clustered(memory_context(), memory_shards(shard.slice(2)), clusters=3)
    assert out["cluster_id"].null_count == 6


@pytest.mark.parametrize("rows", [0, 2])
def test_a_pool_without_a_single_direction_has_no_clusters(rows, memory_shards, memory_context):
    shard = table(np.full((rows, D), np.nan, np.float32))
    ctx = memory_context()
    KMeans(clusters=3).run(Inputs(rows=memory_shards(shard, shard[:0])), ctx)
    assert [c for t in ctx.stored for c in t["cluster_id"].to_pylist()] == [None] * rows


def test_a_cluster_left_empty_takes_half_of_the_largest():
    group = np.repeat(np.eye(3, D), [50, 40, 10], axis=0)
    row_ND = (group + 0.01 * np.random.default_rng(0).standard_normal((100, D))).astype(np.float32)
    centre_KD = unit_rows(np.eye(3, D))
    centre_KD[2] = -unit_rows(group.sum(axis=0, keepdims=True))  # nobody's nearest
    rows = pa.table(
        {"coin": pa.array([0] * 100, pa.uint64()), "unit": from_matrix(unit_rows(row_ND))}
    )
    counts = []
    for _ in range(2):
        sums = cell_sums(centre_KD, rows)
        counts.append(sums["count_K"].tolist())
        centre_KD = moved_centres(centre_KD, sums)["centre_KD"]
    assert counts[0][2] == 0
    assert min(counts[1]) > 0


def test_copies_of_one_vector_do_not_fail(memory_shards, memory_context):
    same = np.ones((20, D), np.float32)
    out = clustered(memory_context(), memory_shards(table(same)), clusters=4)
    assert len(set(out["cluster_id"].to_pylist())) == 1


def test_rounds_read_the_training_rows_alone(memory_shards, memory_context, monkeypatch):
    ctx, seen = memory_context(), []
    reduce_ = ctx.reduce

    def counting(fn, over, merge):
        seen.append(sum(len(over.table(index)) for index in range(len(over))))
        return reduce_(fn, over, merge)

    monkeypatch.setattr(ctx, "reduce", counting)
    shards = memory_shards(table(blobs(400, 6, 0.3)))
    clustered(ctx, shards, clusters=6, rounds=3, train_fraction=0.2)
    first, *rounds, last = seen
    assert first == last == 400
    assert len(rounds) == 3
    assert max(rounds) < 120


def test_train_fraction_leaves_rows_out_of_the_sums_only(memory_shards, memory_context):
    row_ND = blobs(400, centres=6, spread=0.5)
    part = clustered(memory_context(), memory_shards(table(row_ND)), clusters=6, train_fraction=0.2)
    full = clustered(memory_context(), memory_shards(table(row_ND)), clusters=6)
    assert part["cluster_id"].null_count == 0
    assert not part["centroid_cosine"].equals(full["centroid_cosine"])


def test_another_column_can_be_clustered(memory_shards, memory_context):
    shard = table(blobs(50, centres=3, spread=0.1))
    renamed = shard.rename_columns(["uid", "text_embedding"])
    assert [c.name for c in KMeans(clusters=3, column="text_embedding").reads] == ["text_embedding"]
    assert clustered(
        memory_context(), memory_shards(renamed), clusters=3, column="text_embedding"
    ).equals(clustered(memory_context(), memory_shards(shard), clusters=3))


def test_the_column_read_may_be_of_any_width():
    (column,) = KMeans(clusters=2).reads
    assert column.accepts(from_matrix(np.ones((1, D))).type)
    assert as_matrix(from_matrix(np.ones((1, D)))).shape == (1, D)


def test_the_nearest_m_are_those_of_all_cosines_and_the_first_is_the_cluster(
    memory_shards, memory_context
):
    row_ND = blobs(600, centres=20, spread=0.5)
    row_ND[5] = 0
    shards, ctx = memory_shards(table(row_ND)), memory_context()
    out = clustered(ctx, shards, clusters=12, rounds=3, m=4)
    assert out.schema.field("nearest_clusters").type == pa.list_(pa.int32(), 4)
    centre_KD = ctx.states[-1]["centre_KD"].astype(np.float64)
    cosine_NK = unit_rows(row_ND).astype(np.float64) @ centre_KD.T
    for row, (ids, cosines) in enumerate(
        zip(out["nearest_clusters"].to_pylist(), out["nearest_cosines"].to_pylist(), strict=True)
    ):
        if row == 5:
            assert ids is cosines is None
            continue
        assert ids == np.argsort(-cosine_NK[row], kind="stable")[:4].tolist()
        np.testing.assert_allclose(cosines, np.sort(cosine_NK[row])[::-1][:4], atol=1e-7)
    assert [ids and ids[0] for ids in out["nearest_clusters"].to_pylist()] == out[
        "cluster_id"
    ].to_pylist()
    one = clustered(memory_context(), shards, clusters=12, rounds=3)
    assert one.column_names[-3:] == ["cluster_id", "centroid_cosine", "reason"]
    assert one.equals(out.select(one.column_names))


def test_of_fewer_clusters_than_m_the_rest_is_null(memory_shards, memory_context):
    ctx = memory_context()
    out = clustered(ctx, memory_shards(table(blobs(3, 3, 0.1))), clusters=5, m=5)
    assert [
        len([i for i in ids if i is not None]) for ids in out["nearest_clusters"].to_pylist()
    ] == ([3, 3, 3])
    assert out["nearest_clusters"].to_pylist()[0][3:] == [None, None]
    assert out["nearest_cosines"].to_pylist()[0][3:] == [None, None]
    told = summary_of(ctx)
    assert (told["asked"], told["clusters"], told["rows"]) == (5, 3, 3)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_rows_that_an_earlier_select_dropped_take_no_part(metric, memory_shards, memory_context):
    row_ND = blobs(300, centres=12, spread=0.5)
    keep_N = np.arange(300) % 3 > 0
    whole = table(row_ND)
    kept = whole.append_column("keep", pa.array(keep_N, mask=np.arange(300) % 6 == 3))
    settings = {"clusters": 7, "rounds": 4, "metric": metric}
    out = clustered(memory_context(), memory_shards(kept), **settings)
    alone = clustered(memory_context(), memory_shards(whole.filter(pa.array(keep_N))), **settings)
    assert out.filter(pa.array(keep_N)).select(VALUES).equals(alone.select(VALUES))
    dropped = out.filter(pa.array(~keep_N))
    assert dropped["cluster_id"].null_count == len(dropped)
    assert set(dropped["reason"].to_pylist()) == {"dropped_before"}


def test_vectors_stored_in_float16_are_those_numbers(memory_shards, memory_context):
    half_ND = blobs(200, centres=9, spread=0.5).astype(np.float16)
    settings = {"clusters": 6, "rounds": 4}
    expected = clustered(
        memory_context(), memory_shards(table(half_ND.astype(np.float32))), **settings
    )
    for dtype in (pa.list_(pa.float16(), D), pa.list_(pa.float16())):
        (column,) = KMeans(clusters=6).reads
        assert column.accepts(dtype)
        halves = table(half_ND.astype(np.float32)).set_column(
            1, "image_embedding", pa.array(list(half_ND), dtype)
        )
        shards = memory_shards(halves[:0], halves)  # a shard whose lists say no width
        assert (
            clustered(memory_context(), shards, **settings)
            .select(VALUES)
            .equals(expected.select(VALUES))
        )
    assert not column.accepts(pa.list_(pa.int8()))
    assert not column.accepts(pa.float16())


@pytest.mark.parametrize("spread", [1e-3, 1e-6])
def test_points_all_near_each_other_fill_their_clusters(spread, memory_shards, memory_context):
    rng = np.random.default_rng(0)
    row_ND = (np.ones((2_000, D)) + spread * rng.standard_normal((2_000, D))).astype(np.float32)
    for metric in ("cosine", "euclidean"):
        ctx = memory_context()
        out = clustered(ctx, memory_shards(table(row_ND)), clusters=16, metric=metric)
        size_K = np.bincount(out["cluster_id"].to_numpy(), minlength=16)
        assert size_K.min() > 20
        assert size_K.max() < 600


@pytest.mark.parametrize("rows", [2**20, 2**33, 2**36])
def test_sums_of_as_many_equal_rows_as_there_are_fit_64_bits(rows):
    for metric, value in (("cosine", 1.0), ("euclidean", 1.0), ("euclidean", 3e38)):
        space = Space.of(metric, rows, value, value * value)
        (steps,) = {round(value * space.steps)}
        assert rows * steps < 2**63
        assert steps >= 2**24, "no coarser than float32"
        assert rows * round(4 * value * value * space.square_steps) < 2**63
        sums = {"sum_KD": np.array([[rows * steps]]), "count_K": np.array([rows])}
        sums["far_K"] = np.array([0])
        moved = moved_centres(np.zeros((1, 1), np.float32), sums, space)
        assert moved["centre_KD"].tolist() == [[np.float32(value)]]


def test_a_share_without_a_row_to_train_on_is_refused(memory_shards, memory_context):
    with pytest.raises(StageError, match="none of the rows is in the share of 1e-06 of them"):
        clustered(
            memory_context(),
            memory_shards(table(blobs(9, 3, 0.1))),
            clusters=2,
            train_fraction=1e-6,
        )


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, "neither `clusters` nor `centroids` is given"),
        ({"clusters": 3, "centroids": "stage:x"}, "`clusters` and `centroids` are both given"),
        ({"clusters": 3, "m": 4}, "m: 4 nearest of clusters: 3"),
        ({"clusters": 9, "parents": 5}, "parents: 5 of clusters: 9, fewer than 2 children each"),
        ({"clusters": 10_001, "start": "kmeans++"}, "start: kmeans++ of 10,001 clusters at once"),
        ({"centroids": "stage:x", "rounds": 3}, "`rounds` is about finding centroids"),
        ({"centroids": "stage:x", "parents": 3}, "`parents` is about finding centroids"),
        ({"centroids": "stage:x", "start": "kmeans++"}, "`start` is about finding centroids"),
        ({"centroids": "stage:x", "train_fraction": 0.5}, "`train_fraction` is about finding"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, found):
    with pytest.raises(RecipeError, match=re.escape(found)):
        KMeans(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"clusters": 9, "m": 3},
        {"clusters": 9, "metric": "euclidean", "start": "kmeans++"},
        {"clusters": 12, "parents": 3},
        {"centroids": "stage:x"},
    ],
    ids=["one level", "k-means++", "two levels", "given"],
)
def test_values_are_the_same_on_another_device(settings, memory_shards, memory_context):
    """On torch's own processor, by the way that a GPU goes: there is none here."""
    shards, given = memory_shards(table(blobs(300, centres=12, spread=0.5))), memory_context()
    clustered(given, shards, clusters=7)
    there = memory_context()
    there.worker = replace(there.worker, device="cpu:0")
    out = [clustered(ctx, shards, given.folder, **settings) for ctx in (memory_context(), there)]
    assert out[0].equals(out[1])
    assert KMeans(gpus=1, **settings).resources.gpus == 1
