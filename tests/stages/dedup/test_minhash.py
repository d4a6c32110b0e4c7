"""MinHashDuplicate against every pair of sets at every Jaccard; bad rows, scripts, templates."""

import json
from collections import Counter
from functools import partial

import numpy as np
import pyarrow as pa
import pytest

from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import RecipeError
from clipmill.stages.dedup import minhash
from clipmill.stages.dedup.minhash import MinHashDuplicate
from clipmill.stages.ops.tables.keeper import Keep
from tests.memory import MemoryContext
from tests.stages.dedup.brute import linked

WORDS = ["red", "blue", "cat", "dog", "sun", "moon", "猫", "犬", "été", "the", "a", "of"]
VALUES = ["uid", "joined_at", "duplicate_of", "reason"]


def table(texts, uids=None, scores=None) -> pa.Table:
    uids = range(1, len(texts) + 1) if uids is None else uids
    columns = {
        "uid": pa.array([int(uid).to_bytes(16, "big") for uid in uids], pa.binary(16)),
        "text": pa.array(texts, pa.string()),
    }
    if scores is not None:
        columns["score"] = pa.array(scores, pa.float32())
    return pa.table(columns)


def deduplicated(ctx, shards, **settings) -> pa.Table:
    MinHashDuplicate(**settings).run(Inputs(rows=shards), ctx)
    return pa.concat_tables(ctx.stored).unify_dictionaries()


def pieces(text: str | None, unit: str, size: int) -> frozenset:
    plain = " ".join((text or "").lower().split())
    units = list(plain) if unit == "character" else plain.split()
    count = max(1, len(units) - size + 1)
    return frozenset(tuple(units[i : i + size]) for i in range(count) if units)


def expected(rows: pa.Table, floor: float, unit: str, size: int, descending: bool):
    uids = rows["uid"].to_pylist()
    sign = -1 if descending else 1
    order = [(sign * s, uid) for s, uid in zip(rows["score"].to_pylist(), uids, strict=True)]
    rank_N = np.array([sorted(order).index(one) for one in order])
    sets = [pieces(text, unit, size) for text in rows["text"].to_pylist()]
    height_NN = np.array(
        [[-len(a & b) / len(a | b) if a and b else np.inf for b in sets] for a in sets]
    )
    joined, best = linked(height_NN.astype(np.float32), rank_N, -np.float32(floor))
    return joined, [None if row is None else uids[row] for row in best]


@pytest.mark.parametrize("part", range(4))
def test_values_are_those_of_all_pairs_at_all_similarities(
    part, memory_shards, memory_context, monkeypatch
):
    rng = np.random.default_rng(part)
    unit, size = ("character", "word")[part % 2], 1 + part
    for _ in range(12):
        rows, floor = int(rng.integers(1, 30)), float(rng.choice([0.3, 0.5, 0.7, 0.8, 1]))
        monkeypatch.setattr(MemoryContext, "partition_rows", int(rng.integers(4, 60)))
        monkeypatch.setattr(minhash, "PARTITION_BYTES", int(rng.integers(200, 9_000)))
        monkeypatch.setattr(minhash, "BLOCK_BYTES", int(rng.integers(1, 400)))
        texts = [" ".join(rng.choice(WORDS, int(rng.integers(1, 6)))) for _ in range(rows)]
        texts = [rng.choice([None, " ", t.upper(), t], p=[0.1, 0.1, 0.2, 0.6]) for t in texts]
        whole = table(texts, rng.permutation(1_000)[:rows], rng.integers(0, 4, rows))
        order = ("asc", "desc")[rng.integers(0, 2)]
        cut = int(rng.integers(0, rows + 1))
        out = deduplicated(
            memory_context(),
            memory_shards(whole[:cut], whole[cut:]),
            **{"min_jaccard": floor, "unit": unit, "size": size},
            **{"permutations": 256, "min_recall": 0.9999},  # as good as all
            keep=Keep(column="score", order=order),
        )
        joined, best = expected(whole, floor, unit, size, order == "desc")
        assert out["joined_at"].to_pylist() == [j if j is None else -j for j in joined]
        assert out["duplicate_of"].to_pylist() == best


def test_values_are_equal_whatever_the_shards_their_order_and_the_partitions(
    memory_shards, memory_context, monkeypatch
):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, int(rng.integers(2, 9)))) for _ in range(300)]
    whole = table(texts, rng.permutation(300))
    monkeypatch.setattr(minhash, "REACH", 2)  # the order inside a band counts
    settings = {"min_jaccard": 0.4, "size": 2}
    want = deduplicated(memory_context(), memory_shards(whole), **settings).sort_by("uid")
    assert want["joined_at"].null_count not in (0, 300)
    for size, partition_rows in ((7, 30), (100, 5), (299, 1_000)):
        monkeypatch.setattr(MemoryContext, "partition_rows", partition_rows)
        shuffled = whole.take(pa.array(rng.permutation(300)))
        parts = [shuffled[start : start + size] for start in range(0, 300, size)]
        out = deduplicated(memory_context(), memory_shards(*parts), **settings)
        assert out.select(VALUES).sort_by("uid").equals(want.select(VALUES))


def test_known_similarities(memory_shards, memory_context):
    texts = ["a b c d", "A  b\tc D", "a b c e", "x y z"]  # as words: equal, 3 of 5, none
    out = deduplicated(
        memory_context(), memory_shards(table(texts)), unit="word", size=1, min_jaccard=0.5
    )
    assert out["joined_at"].to_pylist() == [None, 1, pytest.approx(0.6), None]
    assert [uid and uid[-1] for uid in out["duplicate_of"].to_pylist()] == [None, 1, 1, None]


def test_scripts_without_spaces_are_compared_by_characters(memory_shards, memory_context):
    texts = [
        "赤い屋根の上に座る白い猫の写真",
        "赤い屋根の上に座る白い猫の絵",
        "海辺の夕焼けと小さな舟",
    ]
    shards = memory_shards(table(texts))
    out = deduplicated(memory_context(), shards, size=3, min_jaccard=0.6)
    assert [uid and uid[-1] for uid in out["duplicate_of"].to_pylist()] == [None, 1, None]


def test_rows_without_text_are_null_with_a_reason_and_nobodys_duplicate(
    memory_shards, memory_context
):
    shards = memory_shards(table([None, "", " \n\x1c", None, "cat", "cat"]))
    out = deduplicated(memory_context(), shards)
    assert out["joined_at"].to_pylist() == [None] * 5 + [1]
    assert out["reason"].to_pylist() == [
        "no_text",
        "empty_text",
        "empty_text",
        "no_text",
        *[None] * 2,
    ]


def test_a_text_shorter_than_a_piece_is_one_piece(memory_shards, memory_context):
    out = deduplicated(memory_context(), memory_shards(table(["cat", "CAT", "cats"])), size=9)
    assert out["joined_at"].to_pylist() == [None, 1, None]


@pytest.mark.parametrize("texts", [[], [None], ["cat"]], ids=str)
def test_a_pool_with_nothing_to_compare_has_no_duplicates(texts, memory_shards, memory_context):
    ctx = memory_context()
    MinHashDuplicate().run(Inputs(rows=memory_shards(table(texts), table([]))), ctx)
    assert [j for t in ctx.stored for j in t["joined_at"].to_pylist()] == [None] * len(texts)


def test_a_template_is_compared_with_its_neighbours_only_and_still_found(
    memory_shards, memory_context, monkeypatch
):
    """And in tables of a size that does not grow with its texts."""
    monkeypatch.setattr(minhash, "PARTITION_BYTES", 50_000)
    monkeypatch.setattr(minhash, "TEMPLATE", 400)
    handed = {}
    for rows in (600, 1_200):
        texts = [
            f"photograph number {n} of the great collection of the museum" for n in range(rows)
        ]
        ctx = memory_context()
        tables = []
        shuffle = ctx.shuffle
        ctx.shuffle = partial(kept, shuffle, tables)
        stage = MinHashDuplicate(min_jaccard=0.7)
        stage.run(Inputs(rows=memory_shards(table(texts))), ctx)
        tables = [t for t in tables if "b" in t.column_names and "height" not in t.column_names]
        halfway = [t for t in tables if "first" in t.column_names]
        assert sum(map(len, halfway)) < rows * stage.bands[0] * minhash.REACH < rows * rows / 2
        assert pa.concat_tables(ctx.stored)["duplicate_of"].null_count == 1
        handed[rows] = max(t.nbytes for t in tables)
        assert handed[rows] < 3 * minhash.PARTITION_BYTES < sum(t.nbytes for t in halfway)
    assert handed[1_200] < 1.5 * handed[600]


def kept(shuffle, tables: list[pa.Table], over, key, partitions):
    """The shuffle, whose tables are seen."""
    made = shuffle(over, key, partitions)
    tables.extend(made)
    return made


def test_pairs_are_counted_before_they_are_made(monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(minhash, "TEMPLATE", 30)
    for most in (1, 3, 12, 60):
        band, upcoming, node = rng.integers(0, [[300 // most], [9], [2**62]], (3, 300), np.uint64)
        met = pa.table({"band": band, "next": upcoming, "node": node})
        assert minhash.counted(met)["pairs"] == len(minhash.candidates(met))


def test_recall_is_said_by_the_formula_and_of_texts_that_are_drawn(
    memory_shards, memory_context, monkeypatch
):
    monkeypatch.setattr(MemoryContext, "partition_rows", 90)
    monkeypatch.setattr(minhash, "DRAWN", 10_000)  # so all are
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 6)) for _ in range(300)]
    texts += texts[:9]  # equal texts are one
    sets = [pieces(text, "word", 1) for text in dict.fromkeys(texts)]
    best_N = [max(len(a & b) / len(a | b) for b in sets if b is not a) for a in sets]
    ctx = memory_context()
    few_bands = {"permutations": 6, "min_recall": 0.7}
    out = deduplicated(
        ctx, memory_shards(table(texts)), unit="word", size=1, min_jaccard=0.8, **few_bands
    )
    said = json.loads((ctx.out / "recall.json").read_text())
    assert (said["bands"], said["rows"]) == (2, 3)
    assert said["pairs_compared"] == {
        str(s): round(1 - (1 - s**3) ** 2, 6) for s in (0.8, 0.85, 0.9, 1.0)
    }
    drawn = said["texts_drawn"]
    assert drawn["all"] == len(sets)
    assert drawn["with_a_near_one"] == sum(best >= 0.8 for best in best_N)
    # Who was joined is what the stage stores: texts that are not alone in their group.
    best = [b or u for u, b in zip(*(out[n].to_pylist() for n in VALUES[::2]), strict=True)]
    groups = Counter(dict(zip(texts, best, strict=True)).values())
    assert drawn["joined"] == sum(size for size in groups.values() if size > 1)
    assert drawn["joined_to_the_nearest"] < drawn["joined"] < drawn["with_a_near_one"]


def test_another_column_can_be_read():
    stage = MinHashDuplicate(column="caption", keep=Keep(column="score", order="asc"))
    assert [getattr(c, "name", c) for c in stage.reads] == ["caption", "score"]


def test_too_few_permutations_for_the_recall_are_refused():
    with pytest.raises(RecipeError, match="8 permutations find") as error:
        MinHashDuplicate(min_jaccard=0.05, permutations=8)
    assert "more of them" in error.value.args[2]
