"""Density: planted clusters by hand, every size of random cases against a plain reference, ties,
rows that are not ranked, wrong inputs. The quotas themselves: test_quotas."""

import json
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.stages.ops.vectors.centroids import to_table
from clipmill.stages.select._clustered import UNIT
from clipmill.stages.select._quotas import probabilities
from clipmill.stages.select.density import Density, mean_distance
from tests.stages.select.test_quotas import quotas


@pytest.fixture
def pruned(tmp_path, memory_context, memory_shards):
    """The stored rows of a run over these tables and centroids, and its context."""

    def run(vectors, *tables: pa.Table, seed: int = 0, **settings):
        vector_KD = np.asarray(vectors, np.float32)
        none_K = np.zeros(len(vector_KD))
        pq.write_table(to_table(vector_KD, none_K, none_K), tmp_path / "centroids.parquet")
        ctx = memory_context(seed)
        stage = Density(centroids=str(tmp_path / "centroids.parquet"), **settings)
        stage.run(Inputs(rows=memory_shards(*tables)), ctx)
        stored = [table.unify_dictionaries() for table in ctx.stored]
        return pa.concat_tables(stored) if stored else None, ctx

    return run


def uids(rows: int, seed: int = 0) -> pa.Array:
    data = np.random.default_rng(seed).bytes(16 * rows)
    return pa.array([data[16 * i : 16 * i + 16] for i in range(rows)], pa.binary(16))


def rows_of(cluster, cosine, uid=None, **columns) -> pa.Table:
    return pa.table(
        {
            "uid": uids(len(cluster)) if uid is None else uid,
            "cluster_id": pa.array(cluster, pa.int32()),
            "centroid_cosine": pa.array(cosine, pa.float32()),
            **columns,
        }
    )


def drawn(rng, clusters=None):
    """Clusters of a few rows with a few cosines, so that many tie; and centroids that tie too."""
    K = clusters or int(rng.integers(1, 6))
    size = int(rng.integers(1, 60))
    cluster = rng.integers(0, K, size)
    cosine = np.round(rng.uniform(0.5, 1, size), rng.integers(1, 4)).astype(np.float32)
    if rng.random() < 0.3:  # like clusters, whose rows enter at the same sizes
        cluster, cosine = np.arange(size) % K, np.repeat(cosine, K)[:size]
    vector_KD = rng.standard_normal((K, 3)).round(1) + 0.01
    return vector_KD, rows_of(cluster.tolist(), cosine.tolist(), uids(size, int(rng.integers(99))))


def reference(vector_KD, rows, size, *, tau=0.1, balance=0.5, neighbours=20):
    """Real quotas of a size, and each row's rank in its cluster: slow and plain."""
    unit_KD = vector_KD / np.linalg.norm(vector_KD, axis=1, keepdims=True)
    table = rows.to_pylist()
    numbers = sorted({row["cluster_id"] for row in table})
    sizes, complexity = [], []
    for k in numbers:
        far = sorted(1 - unit_KD[k] @ unit_KD[j] for j in range(len(unit_KD)) if j != k)
        mine = [1 - float(row["centroid_cosine"]) for row in table if row["cluster_id"] == k]
        near = far[:neighbours]
        complexity.append(np.mean(near) * np.mean(mine) if near else np.nan)
        sizes.append(len(mine))
    size_K = np.array(sizes, float)
    p_K = probabilities(np.array(complexity), tau) / UNIT
    least = balance * size / len(numbers) if balance else min(1, size / len(numbers))
    quota_K = quotas(size * p_K, np.minimum(least, size_K - 1), size_K, size)
    rank: dict = {}
    for k in numbers:
        mine = [i for i, row in enumerate(table) if row["cluster_id"] == k]
        mine.sort(key=lambda i: (table[i]["centroid_cosine"], table[i]["uid"]))
        rank |= {i: place for place, i in enumerate(mine, 1)}
    return numbers, quota_K, [rank[i] for i in range(len(table))]


def test_planted_clusters_get_the_quotas_computed_by_hand(pruned):
    """Dense: cosines .98, sparse: .8, isolated: .9 around a centroid far from the others.

    Unit centroids a, b at 60 degrees, c opposite to their middle: with one neighbour a and b are
    0.5 apart, c is 1 + cos 30 = 1.866025 from both. Complexities 0.02 * 0.5, 0.2 * 0.5 and
    0.1 * 1.866025 = 0.01, 0.1, 0.1866025; by tau 0.1 the weights are 1.105171, 2.718282, 6.462559.
    Of 10.286012 they are the shares 0.107444, 0.264270, 0.628286. Of 60 rows: 6.447, 15.856,
    37.697. The isolated cluster has 20, so 37.697 - 20 = 17.697 goes to the others by halves:
    15.295, 24.705.
    """
    angle = np.pi / 180
    vectors = [[1, 0], [np.cos(60 * angle), np.sin(60 * angle)]]
    vectors.append([-np.cos(30 * angle), -np.sin(30 * angle)])
    cosine = [0.98] * 40 + [0.8] * 40 + [0.9] * 20
    rows = rows_of([0] * 40 + [1] * 40 + [2] * 20, cosine)
    out, ctx = pruned(vectors, rows, rows=60, neighbours=1, balance=0.25)
    table = pq.read_table(ctx.out / "density.parquet").to_pydict()
    assert table["cluster_id"] == [0, 1, 2]
    assert table["rows"] == [40, 40, 20]
    np.testing.assert_allclose(table["d_intra"], [0.02, 0.2, 0.1], atol=1e-7)
    np.testing.assert_allclose(table["d_inter"], [0.5, 0.5, 1.866025], atol=1e-6)
    np.testing.assert_allclose(table["complexity"], [0.01, 0.1, 0.1866025], atol=1e-6)
    np.testing.assert_allclose(table["probability"], [0.107444, 0.264270, 0.628286], atol=1e-6)
    np.testing.assert_allclose(table["quota"], [15.295, 24.705, 20], atol=1e-3)
    assert table["quota_rows"] == table["kept"] == [15, 25, 20]
    summary = json.loads((ctx.out / "density.json").read_text())
    furthest = summary.pop("furthest_from_quota")
    assert summary == {"asked": 60, "kept": 60, "ranked": 100, "clusters": 3}
    assert furthest == pytest.approx(0.295, abs=1e-3)
    for of, row in zip(rows["cluster_id"].to_pylist(), out.to_pylist(), strict=True):
        assert row["cluster_quota"] == [15, 25, 20][of]
        assert row["keep"] == (row["cluster_rank"] <= row["cluster_quota"])


def test_every_size_of_random_cases_keeps_the_rounded_quotas_and_they_nest(pruned):
    rng = np.random.default_rng(0)
    for case in range(8):
        vector_KD, rows = drawn(rng)
        balance, tau = float(rng.choice([0, 0.5, 1])), float(rng.choice([0.1, 0.5]))
        out, _ = pruned(vector_KD, rows, fraction=0.5, balance=balance, tau=tau)
        density_N = out["density_rank"].to_numpy()
        before_N = np.zeros(len(rows), bool)
        for size in range(1, len(rows) + 1):
            keep_N = density_N <= size
            assert (keep_N >= before_N).all(), f"case {case}: {size} rows are not of {size - 1}"
            numbers, quota_K, rank = reference(vector_KD, rows, size, balance=balance, tau=tau)
            assert out["cluster_rank"].to_pylist() == rank
            kept_K = np.bincount(rows["cluster_id"].filter(pa.array(keep_N)), minlength=9)[numbers]
            assert (np.abs(kept_K - quota_K) <= 0.5 + 1e-6).all()
            before_N = keep_N
        assert before_N.all()


def test_a_size_keeps_just_so_many_rows_and_every_size_is_of_the_next(pruned):
    rng = np.random.default_rng(1)
    for _ in range(2):
        vector_KD, rows = drawn(rng)
        rows = rows[:20]
        before_N = np.zeros(len(rows), bool)
        uid_N = np.array(rows["uid"].to_pylist(), object)
        for size in range(1, len(rows) + 1):
            out, ctx = pruned(vector_KD, rows, rows=size)
            keep_N = out["keep"].to_numpy()
            order = sorted(
                range(len(rows)), key=lambda i: (out["density_rank"][i].as_py(), uid_N[i])
            )
            assert sorted(order[:size]) == np.flatnonzero(keep_N).tolist()
            assert (keep_N >= before_N).all()
            kept = pq.read_table(ctx.out / "density.parquet")
            assert np.abs(kept["kept"].to_numpy() - kept["quota_rows"].to_numpy()).max() <= 1
            mine = rows["cluster_id"].filter(pa.array(keep_N)).to_numpy()
            assert kept["kept"].to_pylist() == [
                int((mine == k).sum()) for k in kept["cluster_id"].to_pylist()
            ]
            before_N = keep_N


def test_a_size_may_miss_a_quota_further_only_where_many_others_round_alike(pruned):
    """99 clusters stand at their least, 2.4 of 480 rows, and the wide one takes the difference."""
    vectors = np.random.default_rng(0).standard_normal((100, 8))
    cluster, cosine = [0] * 700 + [1 + i % 99 for i in range(495)], [0.1] * 700 + [0.9] * 495
    _, ctx = pruned(vectors, rows_of(cluster, cosine), rows=480, tau=1e-6)
    table = pq.read_table(ctx.out / "density.parquet")
    off_K = table["kept"].to_numpy() - table["quota"].to_numpy()
    assert off_K[0] == pytest.approx(10, abs=1)
    assert np.abs(off_K[1:]).max() <= 0.6 + 1e-9
    assert table["kept"].to_numpy().sum() == 480


def test_ranks_that_tie_at_the_cut_stay_by_uid_whatever_the_shards(pruned):
    vectors = np.eye(4)
    rows = rows_of([0, 1, 2, 3] * 5, [0.7] * 20, uids(20))
    whole, _ = pruned(vectors, rows, rows=6)
    kept = whole.filter(whole["keep"])
    assert len(kept) == 6
    assert sorted(kept["cluster_rank"].to_pylist()) == [1, 1, 1, 1, 2, 2]
    second = whole.filter(pa.array(whole["cluster_rank"].to_numpy() == 2))
    assert set(second["density_rank"].to_pylist()) == {6.0}
    least = sorted(second["uid"].to_pylist())[:2]
    assert set(least) <= set(kept["uid"].to_pylist())
    assert whole["cluster_quota"].to_pylist()[:4] == [
        1 + any(row["uid"] in least for row in second.to_pylist() if row["position"] % 4 == k)
        for k in range(4)
    ]
    order = np.random.default_rng(0).permutation(20)
    pieces, _ = pruned(vectors, *(rows.take(part) for part in np.split(order, [3, 4, 11])), rows=6)
    by_uid = {row["uid"]: row for row in whole.to_pylist()}
    for row in pieces.to_pylist():
        assert row == by_uid[row["uid"]] | {"shard": row["shard"], "position": row["position"]}


@pytest.mark.parametrize(
    ("order", "first"), [("hard", [0.6, 0.7, 0.8, 0.9]), ("easy", [0.9, 0.8, 0.7, 0.6])]
)
def test_hard_takes_what_is_far_from_the_centroid_and_easy_what_is_near(order, first, pruned):
    cosine = [0.8, 0.6, 0.9, 0.7]
    out, _ = pruned([[1, 0]], rows_of([0] * 4, cosine), rows=2, order=order)
    by_rank = sorted(zip(out["cluster_rank"].to_pylist(), cosine, strict=True))
    assert [value for _, value in by_rank] == first
    assert out["density_rank"].to_pylist() == [
        rank - 0.5 for rank in out["cluster_rank"].to_pylist()
    ]


def test_hash_takes_any_rows_and_others_under_another_seed(pruned):
    rows = rows_of([0] * 200, np.linspace(0.5, 1, 200).tolist())
    one, other = (pruned([[1, 0]], rows, rows=100, order="hash", seed=seed)[0] for seed in (0, 1))
    assert one["keep"].to_pylist() != other["keep"].to_pylist()
    assert 30 < sum(one["keep"].to_pylist()[:100]) < 70


def test_another_file_of_centroids_is_another_digest_and_a_stage_of_the_recipe_none(tmp_path):
    stage = Density(centroids=str(tmp_path / "c.parquet"), rows=1)
    with pytest.raises(StageError, match="no file"):
        stage.look()
    (tmp_path / "c.parquet").write_bytes(b"some")
    stage.look()
    before = stage.outside()
    (tmp_path / "c.parquet").write_bytes(b"others")
    assert stage.outside() != before
    assert Density(centroids="stage:x", rows=1).outside() == ""


def test_rows_that_are_not_ranked_say_why_and_count_for_nothing(pruned):
    rows = rows_of(
        [0, 0, None, 0, 1, 1, 1],
        [0.5, 0.6, None, 0.7, np.nan, 0.8, 0.9],
        keep=pa.array([True, False, True, True, True, None, True]),
        image_bytes=pa.array([1, 1, 1, None, 1, 1, 1]),
    )
    out, ctx = pruned([[1, 0], [0, 1]], rows, fraction=1.0)
    assert out["keep"].to_pylist() == [True, False, False, False, False, False, True]
    assert out["reason"].to_pylist() == [
        None,
        "dropped_before",
        "undefined:cluster_id",
        "undefined:image_bytes",
        "undefined:centroid_cosine",
        "dropped_before",
        None,
    ]
    for name in ("density_rank", "cluster_rank", "cluster_quota"):
        assert [value is None for value in out[name].to_pylist()] == [
            not keep for keep in out["keep"].to_pylist()
        ]
    assert json.loads((ctx.out / "density.json").read_text())["ranked"] == 2


def test_a_pool_without_clusters_keeps_nothing(pruned):
    out, ctx = pruned([[1, 0]], rows_of([None] * 3, [0.5] * 3), fraction=0.5)
    assert out["keep"].to_pylist() == [False] * 3
    assert json.loads((ctx.out / "density.json").read_text())["kept"] == 0
    out, _ = pruned([[1, 0]], rows_of([], []), fraction=0.5)
    assert out is None  # no row, no shard


def test_a_fraction_of_less_than_a_row_keeps_nothing(pruned):
    out, _ = pruned([[1, 0]], rows_of([0] * 3, [0.5] * 3), fraction=0.3)
    assert out["reason"].to_pylist() == ["pruned"] * 3


def test_isolation_is_the_mean_over_the_nearest_others_and_none_of_a_lone_one():
    rng = np.random.default_rng(0)
    unit_KD = rng.standard_normal((40, 8)).astype(np.float32)
    unit_KD /= np.linalg.norm(unit_KD, axis=1, keepdims=True)
    unit_KD[7] = unit_KD[3]  # equal ones are 0 apart
    unit_KD[11] = np.nan  # without a direction: nobody's neighbour
    found_K = np.concatenate([mean_distance(unit_KD, a, a + 8, 20) for a in range(0, 40, 8)])
    wide_KD = unit_KD.astype(np.float64)
    for k in range(40):
        far = sorted(1 - wide_KD[k] @ wide_KD[j] for j in range(40) if j not in (k, 11))[:20]
        assert found_K[k] == pytest.approx(np.mean(far), abs=1e-12) or k == 11
    assert np.isnan(found_K[11])
    assert np.isnan(mean_distance(unit_KD[:1], 0, 1, 20)).all()
    np.testing.assert_allclose(mean_distance(np.eye(3, dtype=np.float32), 0, 3, 20), 1)


def test_sizes_can_be_swept_without_a_run(pruned):
    vector_KD, rows = drawn(np.random.default_rng(5), clusters=4)
    out, _ = pruned(vector_KD, rows, rows=2)
    stage = Density(centroids="c", rows=2)
    (threshold,) = stage.thresholds()
    assert (threshold.name, threshold.value, threshold.is_size) == ("rows", 2, True)
    place = out.select(["uid", "shard", "position"])
    sizes = [Decimal(size) for size in (1, 2, len(rows) // 2, len(rows))]
    for size, found in zip(sizes, stage.verdicts(threshold, sizes, place, out), strict=True):
        again, _ = pruned(vector_KD, rows, rows=int(size))
        assert found.keep.tolist() == again["keep"].to_pylist()
        assert found.rule == f"rows = {size}"
    (share,) = Density(centroids="c", fraction=0.5).thresholds()
    (half,) = stage.verdicts(share, [Decimal("0.5")], place, out)
    assert half.keep.sum() == len(rows) // 2
    for at, value, said in (
        (threshold, len(rows) + 1, "a whole number, 1 to"),
        (threshold, 0, "a whole number, 1 to"),
        (share, 2, "up to 1"),
    ):
        with pytest.raises(ValueError, match=said):
            next(stage.verdicts(at, [Decimal(value)], place, out))


def test_a_row_names_its_rank_and_quota():
    stage = Density(centroids="c", rows=2)
    made = {"cluster_rank": 12, "cluster_quota": 10, "density_rank": 1234.25}
    said = "it is row 12 there, and 10 stay; it stays from 1,234.25 rows on"
    assert stage.explain("pruned", made) == stage.explain("", made) == said
    assert stage.explain("dropped_before", made) == ""


def test_more_rows_than_there_are_is_refused_with_the_most_that_can_be(pruned):
    with pytest.raises(StageError, match="9 rows wanted, and 4 are ranked") as caught:
        pruned([[1, 0]], rows_of([0] * 4, [0.5] * 4), rows=9)
    assert "want 4 at most" in str(caught.value)
    with pytest.raises(StageError, match="1 rows wanted, and 0 are ranked") as caught:
        pruned([[1, 0]], rows_of([None], [0.5]), rows=1)
    assert "see why none is: clipmill funnel" in str(caught.value)


def test_centroids_of_other_clusters_are_refused(pruned):
    with pytest.raises(StageError, match="a row of cluster 5, and 2 centroids"):
        pruned([[1, 0], [0, 1]], rows_of([0, 5], [0.5] * 2), rows=1)
    with pytest.raises(StageError, match="a row of cluster -3, and 2 centroids"):
        pruned([[1, 0], [0, 1]], rows_of([0, -3], [0.5] * 2), rows=1)


@pytest.mark.parametrize("value", [7, float("-inf")])
def test_a_column_that_holds_no_cosines_is_refused(value, pruned):
    """They were distances below 0, or of any size: the cluster's share was another, unsaid."""
    with pytest.raises(StageError, match=f"a cosine of {value}"):
        pruned([[1, 0], [0, 1]], rows_of([0, 1], [0.5, value]), rows=1)


def test_a_file_of_centroids_that_is_not_there_is_said_before_a_run():
    with pytest.raises(StageError, match=r"no file 'gone\.parquet'"):
        Density(centroids="gone.parquet", rows=1).look()
    Density(centroids="stage:clusters", rows=1).look()


@pytest.mark.parametrize(
    ("settings", "said"),
    [({}, "nothing says how much stays"), ({"rows": 1, "fraction": 0.5}, "rows and fraction say")],
)
def test_settings_that_mean_nothing_are_refused(settings, said):
    with pytest.raises(RecipeError, match=said):
        Density(centroids="c", **settings)
