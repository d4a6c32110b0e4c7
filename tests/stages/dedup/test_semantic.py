"""SemanticDuplicate against SemDeDup's rule at every threshold; order, shards, bad rows."""

import numpy as np
import pyarrow as pa
import pytest

from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import StageError
from clipmill.stages.dedup.semantic import SemanticDuplicate
from clipmill.stages.ops.tables.keeper import Keep

VALUES = ["uid", "earlier_cosine", "earlier_uid", "reason"]
RANK = Keep(column="rank", order="asc")


def table(vectors, clusters, ranks=None, uids=None) -> pa.Table:
    rows = len(vectors)
    uids = range(1, rows + 1) if uids is None else uids
    return pa.table(
        {
            "uid": pa.array([int(uid).to_bytes(16, "big") for uid in uids], pa.binary(16)),
            "image_embedding": pa.array(list(vectors), pa.list_(pa.float32())),
            "cluster_id": pa.array(clusters, pa.int32()),
            "rank": pa.array(range(rows) if ranks is None else ranks, pa.int32()),
        }
    )


def deduplicated(ctx, shards, **settings) -> pa.Table:
    SemanticDuplicate(**{"keep": RANK, **settings}).run(Inputs(rows=shards), ctx)
    return pa.concat_tables(ctx.stored).unify_dictionaries()


def kept_by_semdedup(rows: pa.Table, thresholds: set[float], descending: bool) -> dict:
    """The rule as it is written down: of each cluster, all but rows with a like one before."""
    sign = -1 if descending else 1
    ordered = sorted(rows.to_pylist(), key=lambda row: (sign * row["rank"], row["uid"]))
    most_like: dict[bytes, float] = {}
    for number, row in enumerate(ordered):
        a = np.array(row["image_embedding"])
        before = [r for r in ordered[:number] if r["cluster_id"] == row["cluster_id"]]
        like = [np.array(r["image_embedding"]) for r in before]
        cosines = [np.float32(a @ b / np.sqrt((a @ a) * (b @ b))) for b in like]
        most_like[row["uid"]] = max(cosines, default=-np.inf)
    return {
        threshold: {uid for uid, cosine in most_like.items() if cosine < np.float32(threshold)}
        for threshold in thresholds
    }


def test_every_threshold_keeps_what_the_rule_keeps(memory_shards, memory_context):
    rng = np.random.default_rng(0)
    for _ in range(60):
        rows = int(rng.integers(1, 25))
        centre_ND = rng.standard_normal((rows, 3))[rng.integers(0, max(1, rows // 2), rows)]
        vector_ND = (centre_ND + rng.standard_normal((rows, 3)) * rng.choice([0, 0.1])).astype("f4")
        whole = table(
            vector_ND, rng.integers(0, 3, rows), rng.integers(0, 5, rows), rng.permutation(rows)
        )
        cut, order = int(rng.integers(0, rows + 1)), ("asc", "desc")[rng.integers(0, 2)]
        out = deduplicated(
            memory_context(),
            memory_shards(whole[:cut], whole[cut:]),
            keep=Keep(column="rank", order=order),
        ).to_pylist()
        thresholds = {-0.5, 0.3, 0.99, 1.0} | {row["earlier_cosine"] for row in out[:6]} - {-1}
        kept = {
            threshold: {row["uid"] for row in out if row["earlier_cosine"] < threshold}
            for threshold in thresholds
        }
        assert kept == kept_by_semdedup(whole, thresholds, order == "desc")


def test_of_a_chain_the_middle_counts_though_it_is_a_duplicate_itself(
    memory_shards, memory_context
):
    angle_N = np.radians([0, 15, 30])  # neighbours at cosine 0.966, the ends at 0.866
    rows = table(np.stack([np.cos(angle_N), np.sin(angle_N)], axis=1), [4, 4, 4])
    out = deduplicated(memory_context(), memory_shards(rows))
    assert out["earlier_cosine"].to_pylist() == pytest.approx([-1, 0.9659, 0.9659], abs=1e-4)
    assert [uid and uid[-1] for uid in out["earlier_uid"].to_pylist()] == [None, 1, 2]


def test_copies_leave_exactly_one_in_each_cluster(memory_shards, memory_context):
    rows = table([[1, 2]] * 9, [0, 0, 1, 1, 1, 0, 2, 1, 0])
    out = deduplicated(memory_context(), memory_shards(rows[:4], rows[4:]))
    kept = [cosine < 1 for cosine in out["earlier_cosine"].to_pylist()]
    assert kept == [True, False, True, False, False, False, True, False, False]
    assert [uid and uid[-1] for uid in out["earlier_uid"].to_pylist()][-2:] == [3, 1]


@pytest.mark.parametrize(
    ("settings", "first"),
    [({}, 2), ({"keep": Keep(column="centroid_cosine", order="desc")}, 3)],
    ids=["hard", "easy"],
)
def test_rows_come_by_their_distance_from_the_centroid(
    settings, first, memory_shards, memory_context
):
    rows = table([[1, 1], [1, 2], [2, 1]], [0, 0, 0])
    rows = rows.append_column("centroid_cosine", pa.array([0.5, 0.1, 0.9], pa.float32()))
    ctx = memory_context()
    SemanticDuplicate(**settings).run(Inputs(rows=memory_shards(rows)), ctx)
    (only,) = [row for row in ctx.stored[0].to_pylist() if row["earlier_uid"] is None]
    assert only["uid"][-1] == first


def test_values_are_equal_whatever_the_shards_their_order_and_the_precision(
    memory_shards, memory_context
):
    rng = np.random.default_rng(0)
    vector_ND = rng.standard_normal((300, 16))[rng.integers(0, 90, 300)]
    vector_ND += rng.standard_normal((300, 16)) * 0.1
    whole = table(
        vector_ND.astype("f4"),
        rng.integers(0, 7, 300),
        rng.integers(0, 9, 300),
        rng.permutation(300),
    )
    want = deduplicated(memory_context(), memory_shards(whole)).sort_by("uid").select(VALUES)
    for size, precision in ((7, "float32"), (100, "bfloat16"), (299, "bfloat16")):
        shuffled = whole.take(pa.array(rng.permutation(300)))
        parts = [shuffled[start : start + size] for start in range(0, 300, size)]
        out = deduplicated(memory_context(), memory_shards(*parts), precision=precision)
        assert out.sort_by("uid").select(VALUES).equals(want)


def test_rows_without_a_direction_are_null_with_a_reason_and_nobodys_neighbour(
    memory_shards, memory_context
):
    nan = float("nan")
    vectors = [None, [0, 0], [nan, 1], [float("inf"), 1], [1, 0], [1, 0], [1, 0]]
    rows = table(vectors, [None, None, 0, 0, 0, None, 0])
    out = deduplicated(memory_context(), memory_shards(rows[:1], rows[1:]))
    assert out["earlier_cosine"].to_pylist() == [None] * 4 + [-1, None, 1]
    assert [uid and uid[-1] for uid in out["earlier_uid"].to_pylist()] == [None] * 6 + [5]
    bad = ["zero_or_nan_embedding"] * 3
    assert out["reason"].to_pylist() == ["no_embedding", *bad, None, "no_cluster", None]


def test_a_number_below_0_is_a_cluster_too(memory_shards, memory_context):
    rows = table([[1, 0]] * 7, [-1, -5, -1, None, -5, None, 0])  # HDBSCAN's noise is -1
    out = deduplicated(memory_context(), memory_shards(rows))
    assert out["earlier_cosine"].to_pylist() == [-1, -1, 1, None, 1, None, -1]
    none = "no_cluster"
    assert out["reason"].to_pylist() == [None, None, None, none, None, none, None]


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_where_more_than_a_tenth_have_no_direction_the_column_is_refused(
    memory_shards, memory_context, bad
):
    vector_ND = np.random.default_rng(0).standard_normal((70, 3)).astype(np.float32)
    vector_ND[:8] = bad
    with pytest.raises(StageError, match="8 of 70 vectors are zero or not finite"):
        deduplicated(memory_context(), memory_shards(table(vector_ND, [0] * 70)))
    out = deduplicated(memory_context(), memory_shards(table(vector_ND[2:], [0] * 68)))
    assert out["reason"].to_pylist()[:7] == [*["zero_or_nan_embedding"] * 6, None]


def test_a_row_without_a_rank_comes_last(memory_shards, memory_context):
    rows = table([[1, 0], [1, 0]], [0, 0], ranks=[None, 5])
    out = deduplicated(memory_context(), memory_shards(rows))
    assert out["earlier_cosine"].to_pylist() == [1, -1]


@pytest.mark.parametrize("vectors", [[], [None], [[1, 0]]], ids=str)
def test_a_pool_with_nothing_to_compare_has_no_duplicates(vectors, memory_shards, memory_context):
    ctx = memory_context()
    rows = table(vectors, [0] * len(vectors))
    SemanticDuplicate(keep=RANK).run(Inputs(rows=memory_shards(rows, table([], []))), ctx)
    found = [c for part in ctx.stored for c in part["earlier_cosine"].to_pylist()]
    assert found == [None if vector is None else -1 for vector in vectors]


def test_other_columns_can_be_read():
    stage = SemanticDuplicate(column="dino", keep=Keep(column="score.clip_score", order="desc"))
    names = [getattr(column, "name", column) for column in stage.reads]
    assert names == ["dino", "cluster_id", "score.clip_score"]
