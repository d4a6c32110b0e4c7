"""The clusters of a pool: counts against a walk over the rows, the plane, what is most pruned."""

from collections import Counter
from fractions import Fraction
from math import inf
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from clipmill.metadata.schema import CLUSTER_ID, KEEP
from clipmill.metadata.stats import wilson, wilson_bounds
from clipmill.pipeline.ledger.answer import as_json
from clipmill.pipeline.ledger.findings import cluster_counts
from clipmill.pipeline.ledger.findings import clusters as ledger
from clipmill.pipeline.ledger.findings.cluster_counts import FEW, Tally, _values
from clipmill.pipeline.ledger.findings.clusters import ClusterMap, cluster_maps, plane
from clipmill.pipeline.ledger.rows.stored import rows_at, stored
from clipmill.pipeline.ledger.selection.groups import group_of
from clipmill.pipeline.ledger.selection.survey import survey
from clipmill.pipeline.ledger.selection.sweep import sweep
from clipmill.pipeline.ledger.selection.why import why
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import load_recipe
from clipmill.pipeline.stage import Threshold

PICTURES = 60


@pytest.fixture(scope="module", autouse=True)
def own(own_stages) -> None:
    """The select that goes by clusters."""


@pytest.fixture(scope="module")
def rows(clustered) -> list[dict]:
    """Every row, with its cluster and what both selects say."""
    bound = {
        "cluster": ("clusters", CLUSTER_ID.name),
        "even": ("even", KEEP.name),
        "control": ("control", KEEP.name),
        "capped": ("capped", KEEP.name),
        "dense": ("dense", KEEP.name),
        "place": ("dense", "cluster_rank"),
        "quota": ("dense", "cluster_quota"),
        "rank": ("even", "evened_rank"),
    }
    shards = stored(clustered, "pool", bound)
    return [row for index in range(len(shards)) for row in shards.table(index).to_pylist()]


@pytest.fixture(scope="module")
def found(clustered) -> ClusterMap:
    (only,) = cluster_maps(clustered)
    return only


def test_rows_and_kept_rows_are_those_of_a_walk(found, rows):
    of = Counter(row["cluster"] for row in rows)
    assert found.without == of.pop(None) > 0  # pictures that cannot be read
    assert {cluster.number: cluster.rows for cluster in found.drawn} == of
    assert found.rows == sum(of.values())
    assert list(found.ends) == [
        "even",
        "capped",
        "dense",
        "control",
    ]  # those by clusters come first
    for at, end in enumerate(found.ends):
        kept = Counter(row["cluster"] for row in rows if row[end] and row["cluster"] is not None)
        assert found.ends[end] == sum(kept.values())
        assert {c.number: c.kept[at] for c in found.drawn} == {n: kept[n] for n in of}


def test_a_few_rows_of_each_stand_where_they_say(found, clustered):
    for cluster in found.drawn:
        assert len(cluster.few) == min(FEW, cluster.rows)
        places = [row.place for row in cluster.few]
        assert len(set(places)) == len(places)
        for end, stage in enumerate(found.ends):
            bound = {"cluster": ("clusters", CLUSTER_ID.name), "keep": (stage, KEEP.name)}
            there = rows_at(clustered, bound, places)
            assert {row["cluster"] for row in there} == {cluster.number}
            assert [row["keep"] for row in there] == [row.kept[end] for row in cluster.few]


def test_sizes_are_tenths_of_the_clusters_from_the_largest(found):
    assert sum(group.clusters for group in found.sizes) == found.met
    assert sum(group.rows for group in found.sizes) == found.rows
    bounds = [n for group in found.sizes for n in (group.largest, group.smallest)]
    assert bounds == sorted(bounds, reverse=True)
    for at, kept in enumerate(found.ends.values()):
        assert sum(group.kept[at] for group in found.sizes) == kept


def test_the_size_that_varies_keeps_what_a_sweep_says(found, clustered, rows):
    over, capped, dense = found.over  # of `control` nothing is asked: it does not go by clusters
    assert (over.stage, over.name) == ("even", "fraction")
    assert [at.value for at in over.points] == [tenth / 10 for tenth in range(2, 11)]
    assert [at.value for at in over.points if at.is_today] == [0.5]  # 0.1 was refused
    kept = [sum(at.kept) for at in over.points]
    swept = sweep(clustered, "even", "fraction=0.2:1:0.1").points
    assert kept == [point.kept for point in swept]
    assert [at.value for at in capped.points] == [1, 2, 4, 8]
    assert [at.value for at in dense.points] == [tenth / 10 for tenth in range(1, 11)]
    for end, of in enumerate((over, capped, dense)):
        (today,) = (at for at in of.points if at.is_today)
        assert today.kept == tuple(group.kept[end] for group in found.sizes)


@pytest.mark.parametrize(
    ("name", "today", "values"),
    [
        ("fraction", 0.25, [0.1, 0.2, 0.25, *(tenth / 10 for tenth in range(3, 11))]),
        ("top.fraction", 1.0, [tenth / 10 for tenth in range(1, 11)]),
        ("rows", 70.0, [20, 40, 60, 70, *range(80, 201, 20)]),
        ("at_most", 35.0, [4, 9, 18, 35, 70, 140, 280]),
        ("at_most", 1.0, [1, 2, 4, 8]),
        ("t", 0.5, [0.0625, 0.125, 0.25, 0.5, 1, 2, 4]),
    ],
)
def test_a_size_goes_by_tenths_or_doubles(name, today, values):
    size = Threshold(name=name, column="x", sign="<", value=today, text="")
    assert [float(value) for value in _values(size, 200)] == values


def test_a_size_that_lets_all_stay_is_not_varied(clustered, monkeypatch):
    size = Threshold(name="t", column="evened_rank", sign="<", value=inf, text="t = inf")
    monkeypatch.setattr(cluster_counts, "thresholds_of", lambda planned: (size,))
    even, cluster = clustered.plan.stages["even"], ("clusters", CLUSTER_ID.name)
    assert cluster_counts.over_size(clustered, even, cluster, np.zeros(9, np.int8)) is None


def test_all_is_plain_values(found):
    assert as_json(found)["drawn"][0]["few"][0][1] == list(found.drawn[0].few[0].kept)


def test_at_most_so_many_are_drawn_and_the_rest_is_counted(clustered, found, monkeypatch):
    monkeypatch.setattr(ledger, "DRAWN", 2)
    monkeypatch.setattr(ledger, "EXTREME", 1)
    (few,) = cluster_maps(clustered)
    ends = {of.number for some in few.pruned for of in (*some.most, *some.least)}
    assert [len(some.most) for some in few.pruned] == [1] * 3
    drawn = {cluster.number for cluster in few.drawn}
    assert drawn == {cluster.number for cluster in found.drawn[:2]} | ends
    assert few.undrawn_rows == found.rows - sum(cluster.rows for cluster in few.drawn) > 0
    assert len(few.drawn) < len(found.drawn)
    assert few.met == found.met


def test_a_large_pool_is_not_asked_at_other_sizes(clustered, monkeypatch):
    monkeypatch.setattr(ledger, "MOST_ROWS", PICTURES - 1)
    (it,) = cluster_maps(clustered)
    assert it.is_too_large
    assert it.over == ()


def test_a_run_without_clusters_has_none(state):
    assert cluster_maps(state) == []


# What is counted and drawn


def test_a_tally_is_that_of_a_loop_over_rows():
    rng = np.random.default_rng(0)
    shards = [rng.integers(-1, 40, rows) for rows in (300, 0, 1, 200)]
    keeps = [rng.random((2, len(shard))) < 0.3 for shard in shards]
    coins = [rng.integers(0, 50, len(shard)).astype(np.uint64) for shard in shards]  # with ties
    tally = Tally(50, 2)
    known: dict[int, list] = {cluster: [] for cluster in range(50)}
    without = 0
    for shard, (of, keep, coin) in enumerate(zip(shards, keeps, coins, strict=True)):
        column = pa.chunked_array([pa.array(of.astype(np.int32), mask=of < 0)])
        tally.count(shard, column, [pa.chunked_array([pa.array(k)]) for k in keep], coin)
        without += (of < 0).sum()
        for row in np.flatnonzero(of >= 0):
            known[of[row]].append((coin[row], shard, row, tuple(keep[:, row].tolist())))
    assert tally.without == without
    for cluster, of in known.items():
        assert tally.rows_K[cluster] == len(of)
        assert tally.kept_EK[:, cluster].tolist() == [sum(r[3][e] for r in of) for e in (0, 1)]
        few = [((shard, row), kept) for _, shard, row, kept in sorted(of)[:FEW]]
        assert [tuple(row) for row in tally.few(cluster)] == few


def blocks(vector_ND, weight_N, size):
    cuts = range(0, len(vector_ND), size)
    return lambda: ((vector_ND[i : i + size], weight_N[i : i + size]) for i in cuts)


def test_the_plane_is_that_of_a_decomposition_of_all_rows_whatever_the_blocks():
    rng = np.random.default_rng(1)
    vector_ND = (rng.standard_normal((200, 12)) * np.arange(12, 0, -1)).astype(np.float32)
    weight_N = rng.integers(0, 9, 200)
    found = plane(blocks(vector_ND, weight_N, 64))
    every_ND = np.repeat(vector_ND, weight_N, axis=0).astype(np.float64)
    _, size, axis_DD = np.linalg.svd(every_ND - every_ND.mean(axis=0), full_matrices=False)
    wanted_N2 = (vector_ND - every_ND.mean(axis=0)) @ axis_DD[:2].T
    np.testing.assert_allclose(np.abs(found.place), np.abs(wanted_N2), atol=1e-9)
    np.testing.assert_allclose(found.share, size[:2] ** 2 / (size**2).sum())
    np.testing.assert_allclose(
        plane(blocks(vector_ND, weight_N, 200)).place, found.place, atol=1e-9
    )
    flipped = plane(blocks(-vector_ND, weight_N, 64)).place
    np.testing.assert_allclose(flipped, -found.place, atol=1e-9)  # a sign has its rule


@pytest.mark.parametrize(
    ("vector_ND", "weight_N", "place"),
    [
        (np.zeros((0, 3)), [], np.zeros((0, 2))),
        (np.ones((1, 3)), [5], [[0, 0]]),
        (np.ones((3, 3)), [1, 2, 3], np.zeros((3, 2))),
        ([[1], [3]], [1, 1], [[-1, 0], [1, 0]]),
        ([[0, 2], [0, -2], [1, 0]], [0, 0, 0], [[2, -1 / 3], [-2, -1 / 3], [0, 2 / 3]]),
    ],
)
def test_few_centroids_lie_where_they_must(vector_ND, weight_N, place):
    found = plane(blocks(np.asarray(vector_ND, np.float32), np.asarray(weight_N, int), 2))
    np.testing.assert_allclose(found.place, place, atol=1e-7)
    assert 0 <= sum(found.share) <= 1 + 1e-9


def test_a_cluster_of_a_few_rows_is_neither_most_nor_least_pruned():
    rows_K = np.array([1000, 1000, 1, 1, 500, 500, 500, 500, 0])
    kept_K = np.array([10, 990, 0, 1, 200, 210, 300, 290, 0])
    order_M = np.argsort(-rows_K, kind="stable")[:8]
    most, least = ledger._extremes(rows_K, kept_K, order_M)
    assert most == [0, 4, 5, 7]
    assert least == [1, 6, 3, 2]


def test_bounds_of_many_shares_are_those_of_each():
    share_N, trials_N = np.array([0.0, 0.25, 1.0, 0.0]), np.array([7.0, 400.0, 3.0, 0.0])
    each = [wilson(share, trials) for share, trials in zip(share_N, trials_N, strict=True)]
    assert list(zip(*wilson_bounds(share_N, trials_N), strict=True)) == each
    assert each[-1] == (0, 1)
    share, n, z = Fraction(1, 4), 400, Fraction("1.959963984540054")
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    assert sum(each[1]) / 2 == pytest.approx(float(middle))


# Who is kept by size of the picture, and why a row


def test_rows_are_grouped_by_the_size_of_their_picture(clustered):
    side = pa.chunked_array([pa.array([0, 31, 32, 63, 64, 1023, 1024, None, 5000], pa.int32())])
    assert group_of("size", side).to_pylist() == [
        *["below 32 px"] * 2,
        *["32 to 63 px"] * 2,
        "64 to 127 px",
        "512 to 1023 px",
        "1024 px and more",
        None,
        "1024 px and more",
    ]
    rates = survey(clustered, "even").groups["size"]
    assert {group.name for group in rates.groups} == {
        "below 32 px",
        "32 to 63 px",
        "64 to 127 px",
        "(none)",
    }
    assert sum(group.rows for group in rates.groups) == PICTURES


def test_a_cluster_that_a_select_names_itself_is_not_named_twice(clustered, rows, monkeypatch):
    row = next(row for row in rows if row["even"])
    monkeypatch.setattr(
        type(clustered.plan.stages["even"].stage),
        "explain",
        lambda self, reason, made: f"number 1 of cluster {row['cluster']}, of which 2 stay",
    )
    said = {end.stage: end.sentence for end in why(clustered, row["uid"].hex()).ends}
    assert said["even"] == f"kept by 'even'; number 1 of cluster {row['cluster']}, of which 2 stay"


@pytest.mark.slow("asks for every row")
def test_why_names_the_cluster_the_rank_and_the_quota(clustered, rows):
    quota = max(row["rank"] for row in rows if row["even"]) + 1
    seen = set()
    for row in rows:
        if row["rank"] is None:
            continue
        ends = {end.stage: end.sentence for end in why(clustered, row["uid"].hex()).ends}
        verdict = "kept by 'even'" if row["even"] else "dropped by 'even': over_quota"
        place = f"it is number {row['rank'] + 1} there, and {quota} stay"
        cluster = f"; its cluster in 'clusters' is {row['cluster']}; "
        assert ends["even"] == f"{verdict}{cluster}{place}"
        verdict = "kept by 'capped'" if row["capped"] else "dropped by 'capped': sampled_out"
        assert ends["capped"].startswith(f"{verdict}{cluster}by its coin it is number ")
        assert ends["capped"].endswith(" of its cluster_id, and 1 stay")
        verdict = "kept by 'dense'" if row["dense"] else "dropped by 'dense': pruned"
        place = f"it is row {row['place']} there, and {row['quota']} stay; "
        assert ends["dense"].startswith(f"{verdict}{cluster}{place}")
        seen.add((row["even"], row["dense"]))
    assert len(seen) > 2


def test_a_select_over_a_mask_of_clusters_stands_on_them(tmp_path):
    recipe = tmp_path / "it.yaml"
    recipe.write_text(
        "stages:\n"
        "  pool: {uses: ingest.parquet, path: p, image_embedding_col: v, embedding_width: 2,"
        " caption_col: text}\n"
        "  clusters: {uses: cluster.kmeans, from: pool, clusters: 2}\n"
        "  some: {uses: select.where, from: clusters, where: cluster_id < 1}\n"
        "  words: {uses: annotate.caption, from: pool, only: some}\n"
        "  last: {uses: select.where, from: words, where: caption_words > 0}\n"
    )
    state = SimpleNamespace(plan=make_plan(load_recipe(str(recipe))))
    assert ledger.stands_on(state, "last", "clusters")
