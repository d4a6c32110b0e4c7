"""Prototypes: every size of random cases against the rule, step by step; groups; wrong inputs."""

import json
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.stages.select import prototypes
from clipmill.stages.select.prototypes import Prototypes, groups


@pytest.fixture
def pruned(memory_context, memory_shards):
    """The stored rows of a run over these tables, and its context."""

    def run(*tables: pa.Table, **settings):
        ctx = memory_context(0)
        Prototypes(**settings).run(Inputs(rows=memory_shards(*tables)), ctx)
        stored = [table.unify_dictionaries() for table in ctx.stored]
        return pa.concat_tables(stored) if stored else None, ctx

    return run


def rows_of(cluster, cosine, seed=0, **columns) -> pa.Table:
    data = np.random.default_rng(seed).bytes(16 * len(cluster))
    uid = [data[16 * i : 16 * i + 16] for i in range(len(cluster))]
    return pa.table(
        {
            "uid": pa.array(uid, pa.binary(16)),
            "cluster_id": pa.array(cluster, pa.int32()),
            "centroid_cosine": pa.array(cosine, pa.float32()),
            **columns,
        }
    )


def drawn(rng) -> pa.Table:
    """Clusters, a -1 too, of which some lie near their centroid; cosines of few digits tie."""
    size, K = int(rng.integers(1, 80)), int(rng.integers(1, 7))
    cluster = rng.integers(-1, K, size) * int(rng.integers(1, 4))
    cosine = np.round(rng.uniform(0.2, 0.6, size) + 0.06 * cluster, rng.integers(1, 4))
    return rows_of(cluster.tolist(), np.minimum(cosine, 1).tolist(), int(rng.integers(99)))


def reference(rows: pa.Table, balance: float, sign: int) -> list[int]:
    """The rank of every row: places are given out one by one, as the rule says."""
    table = rows.to_pylist()
    order = sorted(
        range(len(table)), key=lambda i: (sign * table[i]["centroid_cosine"], table[i]["uid"])
    )
    clusters = sorted({row["cluster_id"] for row in table})
    queues = [[i for i in order if table[i]["cluster_id"] == k] for k in clusters]
    rank: dict = {}
    turns = 0
    for place in range(1, len(table) + 1):
        row = None
        if int(np.floor(balance * place + 1e-9)) > turns:
            turn, number = divmod(turns, len(clusters))
            turns += 1
            row = queues[number][turn] if turn < len(queues[number]) else None
        if row is None or row in rank:
            row = next(i for i in order if i not in rank)
        rank[row] = place
    return [rank[i] for i in range(len(table))]


def test_every_rank_of_random_cases_is_that_of_the_rule(pruned, monkeypatch):
    rng = np.random.default_rng(0)
    for case in range(12):
        rows = drawn(rng)
        monkeypatch.setattr(prototypes, "GROUP_ROWS", int(rng.choice([1, 7, 1000])))
        balance = float(rng.choice([0, 0.3, 0.5, 1]))
        order, sign = [("hard", 1), ("easy", -1)][case % 2]
        out, _ = pruned(rows, fraction=0.5, balance=balance, order=order)
        assert out["prototype_rank"].to_pylist() == reference(rows, balance, sign), case


def test_every_size_has_each_clusters_least_share_then_the_first_of_all(pruned):
    rng = np.random.default_rng(1)
    for _ in range(10):
        rows, balance = drawn(rng), float(rng.choice([0.25, 0.5, 1]))
        out, _ = pruned(rows, fraction=1.0, balance=balance)
        rank_N, in_cluster_N = (out[name].to_numpy() for name in ("prototype_rank", "cluster_rank"))
        cosine_N, cluster_N = rows["centroid_cosine"].to_numpy(), rows["cluster_id"].to_numpy()
        number_K, size_K = np.unique(cluster_N, return_counts=True)
        for size in range(1, len(rows) + 1):
            keep_N = rank_N <= size  # nested by itself
            assert keep_N.sum() == size
            least = int(balance * size / len(number_K))
            kept_K = np.array([(keep_N & (cluster_N == k)).sum() for k in number_K])
            assert (kept_K >= np.minimum(least, size_K)).all()
            freely_N = keep_N & (in_cluster_N > least + 1)  # no turn of its own yet
            if freely_N.any() and not keep_N.all():
                assert cosine_N[freely_N].max() <= cosine_N[~keep_N].min()


def two_loops(rows: pa.Table, balance: float, size: int) -> set[bytes]:
    """The uids that the released rule keeps: of each cluster its least share, then the hardest."""
    hardest = sorted(rows.to_pylist(), key=lambda row: (row["centroid_cosine"], row["uid"]))
    clusters = {row["cluster_id"] for row in hardest}
    least = int(np.floor(balance * size + 1e-9)) // len(clusters)
    kept = set()
    for cluster in clusters:
        kept |= {row["uid"] for row in [r for r in hardest if r["cluster_id"] == cluster][:least]}
    for row in hardest:
        if len(kept) < size:
            kept.add(row["uid"])
    return kept


def test_it_differs_from_the_released_rule_by_less_than_one_row_a_cluster(pruned):
    rng, differ = np.random.default_rng(2), 0
    for _ in range(10):
        rows, balance = drawn(rng), float(rng.choice([0.25, 0.5, 0.9, 1]))
        clusters = len(set(rows["cluster_id"].to_pylist()))
        out, _ = pruned(rows, fraction=1.0, balance=balance)
        rank = dict(zip(out["uid"].to_pylist(), out["prototype_rank"].to_pylist(), strict=True))
        for size in range(1, len(rows) + 1):
            ours = {uid for uid, place in rank.items() if place <= size}
            others = len(ours - two_loops(rows, balance, size))
            is_whole = int(np.floor(balance * size + 1e-9)) % clusters == 0
            assert others <= (0 if is_whole else clusters - 1)
            differ += others > 0
    assert differ  # so the bound was tried


def test_without_balance_the_furthest_of_all_stay_whatever_their_cluster(pruned):
    cosine = [0.9, 0.2, 0.8, 0.3, 0.7, 0.4]
    rows = rows_of([0, 1, 0, 1, 0, 1], cosine)
    out, _ = pruned(rows, rows=3, balance=0.0)
    assert out["keep"].to_pylist() == [False, True, False, True, False, True]
    out, ctx = pruned(rows, rows=3, balance=0.0, order="easy")
    assert out["keep"].to_pylist() == [True, False, True, False, True, False]
    assert out["prototype_rank"].to_pylist() == [1, 6, 2, 5, 3, 4]
    table = pq.read_table(ctx.out / "prototypes.parquet").to_pydict()
    assert table == {"cluster_id": [0, 1], "rows": [3, 3], "least": [0, 0], "kept": [3, 0]}


def test_balance_keeps_some_of_a_cluster_that_has_none_of_the_furthest(pruned):
    """Of 10 rows 4 by balance 0.5 and two clusters: cluster 1, near its centroid, has 2 of them."""
    cosine = [*np.linspace(0.1, 0.2, 10), *np.linspace(0.8, 0.9, 10)]
    out, ctx = pruned(rows_of([0] * 10 + [1] * 10, cosine), rows=10)
    assert np.flatnonzero(out["keep"].to_numpy()).tolist() == [*range(8), 10, 11]
    assert out["prototype_rank"].to_pylist()[10:12] == [4, 8]  # turns 2 and 4 of places 2, 4, 6, 8
    table = pq.read_table(ctx.out / "prototypes.parquet").to_pydict()
    assert table == {"cluster_id": [0, 1], "rows": [10, 10], "least": [3, 2], "kept": [8, 2]}
    assert out["cluster_quota"].to_pylist() == [8] * 10 + [2] * 10
    summary = json.loads((ctx.out / "prototypes.json").read_text())
    assert summary == {"asked": 10, "kept": 10, "ranked": 20, "clusters": 2}


def test_groups_ascend_and_are_few_where_clusters_are_many():
    rows_B = np.array([0, 5, 0, 7, 100, 1, 0])
    assert groups(rows_B, 3).tolist() == [0] * 7
    many_B = np.full(1 << 16, 1 << 10)
    group_B = groups(many_B, 10)
    assert (np.diff(group_B) >= 0).all()
    assert np.bincount(group_B).tolist() == [1 << 10] * 64  # bins, of 2^10 rows each
    assert groups(many_B, 1_000_000).max() == 15
    assert groups(np.zeros(1 << 16, int), 0).max() == 0


def test_rows_that_are_not_ranked_say_why_and_count_for_nothing(pruned):
    rows = rows_of(
        [0, 0, None, 0, 1],
        [0.5, 0.6, None, np.nan, 0.8],
        keep=pa.array([True, False, True, True, True]),
        image_bytes=pa.array([1, 1, 1, 1, None]),
    )
    out, ctx = pruned(rows, fraction=1.0)
    assert out["reason"].to_pylist() == [
        None,
        "dropped_before",
        "undefined:cluster_id",
        "undefined:centroid_cosine",
        "undefined:image_bytes",
    ]
    assert out["keep"].to_pylist() == [True] + [False] * 4
    assert out["prototype_rank"].to_pylist() == [1] + [None] * 4
    assert json.loads((ctx.out / "prototypes.json").read_text())["ranked"] == 1


def test_a_pool_without_clusters_keeps_nothing(pruned):
    out, ctx = pruned(rows_of([None] * 3, [0.5] * 3), fraction=0.5)
    assert out["keep"].to_pylist() == [False] * 3
    assert json.loads((ctx.out / "prototypes.json").read_text())["kept"] == 0
    assert pruned(rows_of([], []), fraction=0.5)[0] is None


def test_sizes_can_be_swept_without_a_run(pruned):
    rows = drawn(np.random.default_rng(5))
    out, _ = pruned(rows, rows=2)
    stage = Prototypes(rows=2)
    (threshold,) = stage.thresholds()
    place = out.select(["uid", "shard", "position"])
    sizes = [Decimal(size) for size in (1, len(rows) // 2, len(rows))]
    for size, found in zip(sizes, stage.verdicts(threshold, sizes, place, out), strict=True):
        assert found.keep.tolist() == pruned(rows, rows=int(size))[0]["keep"].to_pylist()


def test_a_row_names_its_rank_and_quota():
    made = {"cluster_rank": 12, "cluster_quota": 10, "prototype_rank": 1234}
    said = "it is row 12 there, and 10 stay; it stays from 1,234 rows on"
    assert Prototypes(rows=2).explain("pruned", made) == said
    assert Prototypes(rows=2).explain("dropped_before", made) == ""


def test_more_rows_than_there_are_is_refused_with_the_most_that_can_be(pruned):
    with pytest.raises(StageError, match="9 rows wanted, and 4 are ranked") as caught:
        pruned(rows_of([0] * 4, [0.5] * 4), rows=9)
    assert "want 4 at most" in str(caught.value)


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(RecipeError, match="nothing says how much stays"):
        Prototypes()
