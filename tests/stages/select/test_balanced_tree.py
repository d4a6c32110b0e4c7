"""Balanced trees: planted clusters, all targets against brute force, wrong inputs."""

import json
import pickle
from collections import Counter
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.uid import coin_hash
from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.stage import Selects
from clipmill.stages.ops.vectors.centroids import to_table
from clipmill.stages.select.balanced_tree import BalancedTree

SIZES = [50, 3, 20, 7, 0, 31, 12, 1]
# Two nodes of two: clusters 0 to 3 point one way, 4 to 7 the other.
WAYS = np.array([[9, 1, n % 2] if n < 4 else [1, 9, n % 2] for n in range(8)], np.float32)


def centroids_at(path, vector_KD=WAYS, metric="euclidean") -> str:
    none = np.zeros(len(vector_KD))
    pq.write_table(to_table(np.asarray(vector_KD), none, none, metric=metric), path)
    return str(path)


def rows_of(clusters: list, **columns) -> pa.Table:
    uids = [np.random.default_rng(i).bytes(16) for i in range(len(clusters))]
    return pa.table(
        {
            "uid": pa.array(uids, pa.binary(16)),
            "cluster_id": pa.array(clusters, pa.int32()),
            **columns,
        }
    )


@pytest.fixture
def pool() -> pa.Table:
    ids = np.repeat(np.arange(len(SIZES)), SIZES)
    return rows_of(np.random.default_rng(0).permutation(ids).tolist())


@pytest.fixture
def treed(tmp_path, memory_context, memory_shards):
    """The stored rows of a run over these tables, and its context."""
    file = centroids_at(tmp_path / "centroids.parquet")

    def run(*tables: pa.Table, seed: int = 0, **settings):
        ctx = memory_context(seed)
        stage = BalancedTree(**{"centroids": file, "levels": (4, 2), **settings})
        stage.run(Inputs(rows=memory_shards(*tables)), ctx)
        return pa.concat_tables(t.unify_dictionaries() for t in ctx.stored), ctx

    return run


def told(ctx) -> dict:
    return json.loads((ctx.out / "tree.json").read_text())


def test_the_known_answer_of_sizes_five_three_and_one(treed):
    out, ctx = treed(rows_of([0] * 5 + [1] * 3 + [2]), levels=(), rows=7)
    ids = [path[0] for path in out.filter(out["keep"])["tree_path"].to_pylist()]
    assert Counter(ids) == {0: 3, 1: 3, 2: 1}
    assert told(ctx) == {"rows": 9, "asked": 7, "kept": 7}


def test_clusters_that_point_one_way_share_a_branch_and_branches_get_alike(pool, treed):
    out, ctx = treed(pool, rows=40)
    table = pq.read_table(ctx.out / "tree.parquet").to_pylist()
    top = {row["node"]: row for row in table if row["level"] == 2}
    assert sorted(row["rows"] for row in top.values()) == [44, 80]
    assert [row["quota"] for row in top.values()] == [20, 20]
    above = {row["node"]: row["parent"] for row in table if row["level"] == 1}
    branch = [above[row["parent"]] for row in table if row["level"] == 0]
    assert len(set(branch[:4])) == len(set(branch[4:])) == 1
    (root,) = (row for row in table if row["level"] == 3)
    assert root["parent"] is None
    assert (root["rows"], root["quota"]) == (124, 40)
    assert root["kept"] == sum(out["keep"].to_pylist()) == told(ctx)["kept"]
    assert [row["rows"] for row in table if row["level"] == 0] == SIZES
    for level in (1, 2, 3):
        for node in (row for row in table if row["level"] == level):
            below = [r for r in table if r["level"] == level - 1 and r["parent"] == node["node"]]
            for name in ("rows", "kept"):
                assert sum(row[name] for row in below) == node[name]


@pytest.mark.parametrize("order", ["random", "nearest", "farthest"])
def test_every_target_keeps_what_its_rank_says_and_the_first_of_each_cluster(order, pool, treed):
    cosine = np.random.default_rng(1).integers(0, 9, len(pool)) / 10  # ties
    pool = pool.append_column("centroid_cosine", pa.array(cosine, pa.float32()))
    uid = pool["uid"].to_pylist()
    coin = coin_hash(pool["uid"], seed=0, stage="it", purpose="leaf").tolist()
    first = {
        "random": lambda i: (coin[i], uid[i]),
        "nearest": lambda i: (-cosine[i], uid[i]),
        "farthest": lambda i: (cosine[i], uid[i]),
    }[order]
    cluster = pool["cluster_id"].to_pylist()
    whole, _ = treed(pool, order=order, rows=124)
    assert all(whole["keep"].to_pylist())
    rank_N = whole["tree_rank"].to_numpy()
    for target in (1, 2, 3, 17, 40, 41, 77, 120, 123):
        out, ctx = treed(pool, order=order, rows=target)
        assert out["tree_rank"].to_pylist() == rank_N.tolist(), "whatever the target"
        assert out["keep"].to_pylist() == (rank_N <= target).tolist()
        assert told(ctx)["kept"] == sum(out["keep"].to_pylist())
        quota = {
            path[-1]: n for path, n in zip(*columns(out, "tree_path", "leaf_quota"), strict=True)
        }
        for k, size in enumerate(SIZES):
            ranked = sorted((i for i in range(len(pool)) if cluster[i] == k), key=first)
            assert [out["leaf_rank"][i].as_py() for i in ranked] == list(range(1, size + 1))
            assert [out["keep"][i].as_py() for i in ranked] == [
                place < quota.get(k, 0) for place in range(size)
            ]


def columns(table: pa.Table, *names: str) -> list[list]:
    return [table[name].to_pylist() for name in names]


def test_a_fraction_is_of_the_rows_with_a_cluster_rounded_down(treed):
    _, ctx = treed(rows_of([0] * 7 + [None] * 3), levels=(), fraction=0.5)
    assert told(ctx) == {"rows": 7, "asked": 3, "kept": 3}
    assert treed(rows_of([0] * 7), levels=(), fraction=1)[0]["keep"].to_pylist() == [True] * 7


def test_rows_out_of_the_population_are_null_with_a_reason(treed):
    pool = rows_of(
        [0, None, 0, 0, 0],
        keep=pa.array([True, True, False, None, True]),
        image_bytes=pa.array([1, 1, 1, 1, None], pa.int64()),
    )
    out, ctx = treed(pool, rows=1)
    assert out["reason"].to_pylist() == [
        None,
        "undefined:cluster_id",
        "dropped_before",
        "dropped_before",
        "undefined:image_bytes",
    ]
    for name in ("tree_rank", "tree_path", "leaf_rank", "leaf_quota"):
        assert out[name].is_valid().to_pylist() == [True] + [False] * 4
    assert out["keep"].null_count == 0
    assert told(ctx)["rows"] == 1


def test_rows_of_one_uid_are_taken_by_their_place(treed):
    twice = rows_of([0, 0])
    twice = twice.set_column(0, "uid", pa.array([b"u" * 16] * 2, pa.binary(16)))
    out, _ = treed(twice, levels=(), rows=1)
    assert out["keep"].to_pylist() == [True, False]


def test_a_target_is_swept_and_explained_without_a_run(pool, treed):
    stage = BalancedTree(centroids="stage:x", levels=(4, 2), rows=40)
    assert isinstance(stage, Selects)
    assert pickle.loads(pickle.dumps(stage)) == stage
    out, _ = treed(pool, rows=40)
    (threshold,) = stage.thresholds()
    assert (threshold.name, threshold.column, threshold.sign) == ("rows", "tree_rank", "<=")
    values = [Decimal(7), Decimal(40), Decimal(124)]
    for value, verdicts in zip(values, stage.verdicts(threshold, values, pool, out), strict=True):
        again, _ = treed(pool, rows=int(value))
        assert verdicts.keep.tolist() == again["keep"].to_pylist()
    for wrong in (0, Decimal("1.5"), 125):
        with pytest.raises(ValueError, match=r"a whole number, 1 to 124"):
            list(stage.verdicts(threshold, [Decimal(wrong)], pool, out))
    share = BalancedTree(centroids="stage:x", levels=(4, 2), fraction=0.5)
    (threshold,) = share.thresholds()
    (verdicts,) = share.verdicts(threshold, [Decimal("0.25")], pool, out)
    assert verdicts.keep.tolist() == treed(pool, fraction=0.25)[0]["keep"].to_pylist()
    with pytest.raises(ValueError, match="above 0, up to 1"):
        list(share.verdicts(threshold, [Decimal(0)], pool, out))


def test_a_row_is_explained_by_cluster_path_quota_and_place():
    stage = BalancedTree(centroids="stage:x", levels=(4, 2), rows=40)
    made = {"tree_path": [1, 17, 212], "leaf_quota": 40, "leaf_rank": 57, "tree_rank": 12_345}
    said = "cluster 212 below 1 / 17 keeps 40 rows, and it is number 57; a target of 12,345 rows"
    for reason in ("", "balanced_out"):  # kept, and dropped
        assert stage.explain(reason, made).startswith(said)
    alone = stage.explain("balanced_out", {**made, "tree_path": [212]})
    assert alone.startswith("cluster 212 keeps")
    assert stage.explain("", made).startswith(said)  # of a row that is kept
    assert stage.explain("dropped_before", made) == ""


def test_one_cluster_is_a_tree_too(tmp_path, treed):
    one = centroids_at(tmp_path / "one.parquet", WAYS[:1])
    for levels in ((), (1,)):
        out, ctx = treed(rows_of([0] * 5), centroids=one, levels=levels, rows=2)
        assert sum(out["keep"].to_pylist()) == told(ctx)["kept"] == 2


def test_centroids_that_changed_on_disk_are_read_anew(tmp_path, pool, treed):
    file = tmp_path / "mine.parquet"
    first, _ = treed(pool, centroids=centroids_at(file), rows=40)
    turned = centroids_at(file, WAYS[::-1] + np.arange(8, dtype=np.float32)[:, None] ** 2)
    second, _ = treed(pool, centroids=turned, rows=40)
    assert first["tree_path"] != second["tree_path"]


def test_a_pool_whose_rows_have_no_cluster_keeps_none_of_a_share(treed):
    out, ctx = treed(rows_of([None, None]), fraction=0.5)
    assert out["keep"].to_pylist() == [False, False]
    assert told(ctx) == {"rows": 0, "asked": 0, "kept": 0}


def test_a_pool_without_shards_has_nothing_to_judge(tmp_path, memory_context, memory_shards):
    ctx = memory_context()
    ctx.restore = ctx.stored.append
    stage = BalancedTree(centroids=centroids_at(tmp_path / "c.parquet"), levels=(4,), rows=1)
    stage.run(Inputs(rows=memory_shards()), ctx)
    assert ctx.stored == [[]]


@pytest.mark.parametrize(
    ("settings", "clusters", "said"),
    [
        ({"rows": 6}, [0] * 5, "6 rows wanted, and 5 are ranked"),
        ({"rows": 1}, [None], "1 rows wanted, and 0 are ranked"),
        ({"rows": 1, "levels": (9,)}, [0], "9 nodes above 8 clusters"),
        ({"rows": 1}, [0, 8], "a row of cluster 8, and 8 centroids"),
        ({"rows": 1}, [0, -1], "a row of cluster -1, and 8 centroids"),
    ],
)
def test_what_the_rows_cannot_give_is_refused_with_both_numbers(settings, clusters, said, treed):
    with pytest.raises(StageError, match=said):
        treed(rows_of(clusters), **settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "nothing says how much"),
        ({"rows": 5, "fraction": 0.5}, "rows and fraction say"),
        ({"rows": 5, "levels": (10, 50)}, "from 10 up to 50"),
        ({"rows": 5, "levels": (10, 10)}, "from 10 up to 10"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, said):
    with pytest.raises(RecipeError, match=said):
        BalancedTree(**{"centroids": "stage:x", "levels": (), **settings})
