"""KMeans of two levels: children within their parents, near ones found, and what it costs."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.stages.cluster._rounds import SEARCHED, Tree
from clipmill.stages.cluster._split import REFINED, shared_out
from clipmill.stages.ops.vectors.matrices import as_matrix, unit_rows
from tests.stages.cluster.shared import VALUES, blobs, centroids_of, clustered, summary_of, table

ROWS, CLUSTERS, PARENTS = 3_000, 60, 12


def test_inertia_is_within_five_percent_of_one_level(memory_shards, memory_context):
    shards = memory_shards(table(blobs(ROWS, centres=80, spread=0.4, width=16)))
    inertia = {}
    for parents in (None, PARENTS):
        ctx = memory_context()
        clustered(ctx, shards, clusters=CLUSTERS, parents=parents)
        told = summary_of(ctx)
        inertia[parents] = told["inertia"]
        assert told["parents"] == parents
        assert told["inertia"] == pytest.approx(sum(centroids_of(ctx)["inertia"].to_pylist()))
    assert inertia[PARENTS] < 1.05 * inertia[None]


def test_files_say_the_parent_of_each_centroid_and_the_rounds_of_both_levels(
    memory_shards, memory_context
):
    ctx = memory_context()
    shards = memory_shards(table(blobs(ROWS, centres=80, spread=0.4)))
    out = clustered(ctx, shards, clusters=CLUSTERS, parents=PARENTS, rounds=5)
    held = centroids_of(ctx)
    assert held["cluster_id"].to_pylist() == list(range(CLUSTERS))
    parent_K = held["parent"].to_numpy()
    assert np.unique(parent_K).tolist() == list(range(PARENTS))
    assert (np.diff(parent_K) >= 0).all()
    assert held["rows"].to_pylist() == np.bincount(out["cluster_id"], minlength=60).tolist()
    rounds = pq.read_table(ctx.out / "rounds.parquet")
    assert rounds["level"].to_pylist() == [0] * 5 + [1] * (5 + REFINED)
    assert rounds["rows"].to_pylist() == [ROWS] * (10 + REFINED)
    by_round = rounds["inertia"].to_pylist()
    assert by_round == sorted(by_round, reverse=True)
    assert summary_of(ctx)["inertia"] < by_round[-1]
    assert by_round[-1] < by_round[-2] < 0.99 * by_round[-3], "children of other parents are near"


def test_a_row_gets_the_nearest_children_of_the_parents_nearest_to_it():
    rng = np.random.default_rng(0)
    row_ND, parent_PD, centre_KD = (
        rng.standard_normal((n, 6)).astype(np.float32) for n in (200, 20, 100)
    )
    first = np.sort(rng.integers(0, 101, 19))
    tree = Tree(centre=centre_KD, parent=parent_PD, first=np.array([0, *first, 100]))
    index_Nm = tree.nearest(row_ND, 3)
    wide_ND = row_ND.astype(np.float64)
    far_NP = ((wide_ND[:, None] - parent_PD) ** 2).sum(axis=2)
    far_NK = ((wide_ND[:, None] - centre_KD) ** 2).sum(axis=2)
    for row in range(200):
        near = np.argsort(far_NP[row])[:SEARCHED]
        allowed = np.flatnonzero(np.isin(tree.parent_of, near))
        best = allowed[np.argsort(far_NK[row, allowed], kind="stable")][:3]
        assert index_Nm[row].tolist() == [*best, *[-1] * (3 - len(best))]


def test_of_equally_near_centres_the_first_is_taken():
    same = np.ones((6, 2), np.float32)
    tree = Tree(centre=same, parent=same[:3] * [[3], [2], [1]], first=np.array([0, 2, 4, 6]))
    assert tree.nearest(same[:1], 4).tolist() == [[0, 1, 2, 3]]


def test_children_are_shared_out_by_rows():
    assert shared_out(10, np.array([60, 30, 10])).tolist() == [5, 3, 2]
    assert shared_out(10, np.array([0, 99, 1])).tolist() == [0, 8, 1]  # of 1 row only one
    assert shared_out(4, np.array([2, 2])).tolist() == [2, 2]
    assert shared_out(9, np.array([1, 1])).tolist() == [1, 1]
    many = np.full(1_000, 1_280_000_000)
    assert shared_out(1_000_000, many).tolist() == [1_000] * 1_000


def test_copies_and_rows_without_a_direction_do_not_fail(memory_shards, memory_context):
    row_ND = np.ones((40, 8), np.float32)
    row_ND[:5] = 0
    for start in ("sampled", "kmeans++"):
        out = clustered(
            memory_context(), memory_shards(table(row_ND)), clusters=8, parents=2, start=start
        )
        assert out["cluster_id"].null_count == 5
        assert len({*out["cluster_id"].drop_null().to_pylist()}) == 1


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_a_pool_of_few_rows_has_few_clusters(rows, memory_shards, memory_context):
    whole = table(unit_rows(blobs(3, 3, 0.1)))
    shards, ctx = memory_shards(whole[:rows], whole[:0]), memory_context()
    if not rows:
        shards = memory_shards(table(np.full((2, 8), np.nan, np.float32)))
    out = clustered(ctx, shards, clusters=9, parents=4)
    assert out["cluster_id"].to_pylist() in ([None, None], [0], [0, 1, 2], [1, 0, 2], [2, 0, 1])
    assert len(as_matrix(centroids_of(ctx)["centroid"])) == rows


def test_shards_whose_lists_say_no_width_change_nothing(memory_shards, memory_context):
    whole = table(unit_rows(blobs(300, 12, 0.3)))
    lists = pa.list_(pa.float32())
    varying = whole.set_column(1, "image_embedding", whole["image_embedding"].cast(lists))
    settings = {"clusters": 12, "parents": 3, "rounds": 3}
    expected = clustered(memory_context(), memory_shards(whole), **settings).select(VALUES)
    shards = memory_shards(varying[:0], varying[:150], varying[150:])
    assert clustered(memory_context(), shards, **settings).select(VALUES).equals(expected)
