"""PHashDuplicate against every pair at every distance; what bad rows do."""

import numpy as np
import pyarrow as pa
import pytest

from clipmill.pipeline.dataset import Inputs
from clipmill.stages.dedup import _hamming as hamming
from clipmill.stages.dedup.phash import PHashDuplicate
from clipmill.stages.ops.tables.keeper import Keep
from tests.memory import MemoryContext
from tests.stages.dedup.brute import linked

VALUES = ["uid", "joined_at", "duplicate_of", "reason"]


def table(codes, uids=None, scores=None) -> pa.Table:
    uids = range(1, len(codes) + 1) if uids is None else uids
    columns = {
        "uid": pa.array([int(uid).to_bytes(16, "big") for uid in uids], pa.binary(16)),
        "phash": pa.array(codes, pa.uint64()),
    }
    if scores is not None:
        columns["score"] = pa.array(scores, pa.float32())
    return pa.table(columns)


def deduplicated(ctx, shards, **settings) -> pa.Table:
    PHashDuplicate(**settings).run(Inputs(rows=shards), ctx)
    return pa.concat_tables(ctx.stored).unify_dictionaries()


def near_copies(rng, rows: int) -> list[int | None]:
    """Codes around a few centres, up to eight bits off, often equal; one in twenty is null."""
    code_N = rng.integers(0, 2**64, 4, dtype=np.uint64)[rng.integers(0, 4, rows)]
    for _ in range(rng.integers(0, 9)):
        flip_N = rng.integers(0, 2, rows, dtype=np.uint64)
        code_N ^= flip_N << rng.integers(0, 64, rows, dtype=np.uint64)
    return [None if rng.random() < 0.05 else int(code) for code in code_N]


def expected(rows: pa.Table, floor: int, descending: bool | None = None):
    codes, uids = rows["phash"].to_pylist(), rows["uid"].to_pylist()
    scores = [0.0] * len(codes) if descending is None else rows["score"].to_pylist()
    sign = -1 if descending else 1
    order = [(s is None, sign * (s or 0), uid) for s, uid in zip(scores, uids, strict=True)]
    rank_N = np.array([sorted(order).index(one) for one in order])
    code_N = np.array([code or 0 for code in codes], np.uint64)
    height_NN = np.bitwise_count(code_N[:, None] ^ code_N[None]).astype(float)
    is_null_N = np.array([code is None for code in codes], bool)
    height_NN[is_null_N] = height_NN[:, is_null_N] = np.inf
    joined, best = linked(height_NN, rank_N, floor)
    return joined, [None if row is None else uids[row] for row in best]


def test_values_are_those_of_all_pairs_at_all_distances(memory_shards, memory_context, monkeypatch):
    rng = np.random.default_rng(0)
    for _ in range(25):
        rows, floor = int(rng.integers(1, 40)), int(rng.integers(0, 7))
        monkeypatch.setattr(MemoryContext, "partition_rows", int(rng.integers(4, 60)))
        monkeypatch.setattr(hamming, "CROWD_CODES", int(rng.choice([2, 4096])))
        monkeypatch.setattr(hamming, "LOOK_UP", 0)
        monkeypatch.setattr(hamming, "FOREST_PAIRS", int(rng.choice([3, 2**21])))
        uids = rng.permutation(1_000)[:rows]
        whole = table(near_copies(rng, rows), uids, [None, *rng.integers(0, 4, rows - 1)])
        order = [None, "asc", "desc"][rng.integers(0, 3)]
        keep = Keep(column="score", order=order) if order else None
        cut = int(rng.integers(0, rows + 1))
        shards = memory_shards(whole[:cut], whole[cut:])
        out = deduplicated(memory_context(), shards, max_distance=floor, keep=keep)
        joined, best = expected(whole, floor, order and order == "desc")
        assert out["joined_at"].to_pylist() == joined
        assert out["duplicate_of"].to_pylist() == best


def test_a_chain_of_near_pairs_is_one_group_and_each_falls_where_it_first_meets_a_better_row(
    memory_shards, memory_context
):
    whole = table([0b0, 0b1, 0b111, 0b1111111], uids=[2, 1, 3, 4])
    out = deduplicated(memory_context(), memory_shards(whole), max_distance=3)
    assert out["joined_at"].to_pylist() == [1, None, 2, None]
    out = deduplicated(memory_context(), memory_shards(whole), max_distance=4)
    assert out["joined_at"].to_pylist() == [1, None, 2, 4]
    assert {uid and uid[-1] for uid in out["duplicate_of"].to_pylist()} == {1, None}


def test_a_row_without_a_hash_is_null_with_a_reason_and_nobodys_duplicate(
    memory_shards, memory_context
):
    out = deduplicated(memory_context(), memory_shards(table([None, 7, None, 7])), max_distance=3)
    assert out["joined_at"].to_pylist() == [None, None, None, 0]
    assert out["reason"].to_pylist() == ["no_hash", None, "no_hash", None]


def test_the_keeper_is_the_best_by_the_column_and_then_the_least_uid(memory_shards, memory_context):
    whole = table([7, 7, 7, 7], uids=[1, 3, 2, 4], scores=[0.5, 0.9, 0.9, None])
    keep = Keep(column="score", order="desc")
    out = deduplicated(memory_context(), memory_shards(whole), keep=keep)
    assert [uid and uid[-1] for uid in out["duplicate_of"].to_pylist()] == [2, 2, None, 2]


@pytest.mark.parametrize("codes", [[], [None], [7], [None, None]], ids=str)
def test_a_pool_with_nothing_to_compare_has_no_duplicates(codes, memory_shards, memory_context):
    ctx = memory_context()
    PHashDuplicate().run(Inputs(rows=memory_shards(table(codes), table([]))), ctx)
    assert [j for t in ctx.stored for j in t["joined_at"].to_pylist()] == [None] * len(codes)


def test_a_hundred_thousand_equal_hashes_are_one_group(memory_shards, memory_context, monkeypatch):
    monkeypatch.setattr(MemoryContext, "partition_rows", 200_000)
    rows = 100_000
    uid = np.zeros((rows, 2), ">u8")
    uid[:, 1] = np.arange(rows)
    uids = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), rows, [None, pa.py_buffer(uid)])
    whole = pa.table({"uid": uids, "phash": pa.array(np.full(rows, 7, np.uint64))})
    out = deduplicated(memory_context(), memory_shards(whole))
    assert out["duplicate_of"].null_count == 1
    assert out["joined_at"].to_numpy()[1:].max() == 0


def test_the_pairs_that_a_plan_expects_are_those_that_unrelated_codes_meet():
    rows = 50_000
    code_N = np.random.default_rng(5).integers(0, 2**64, rows, dtype=np.uint64)
    _, met = np.unique(hamming.keys(code_N, 6), return_counts=True)
    found = (met * (met - 1) // 2).sum()
    assert PHashDuplicate(max_distance=6).candidates(rows) == pytest.approx(found, rel=0.01)
    assert PHashDuplicate(max_distance=0).candidates(rows) == 0  # equal codes are not compared


def test_another_hash_can_be_read_and_the_keepers_column_is_read_too():
    stage = PHashDuplicate(column="dhash", keep=Keep(column="score.clip_score", order="desc"))
    assert [getattr(c, "name", c) for c in stage.reads] == ["dhash", "score.clip_score"]
