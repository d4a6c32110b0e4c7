"""out/pairs.parquet of dedup.phash and dedup.minhash, against all pairs."""

from itertools import combinations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.fingerprint import settings_of
from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import StageError
from clipmill.stages.dedup import _hamming as hamming
from clipmill.stages.dedup import _pairs as pairs
from clipmill.stages.dedup import minhash
from clipmill.stages.dedup.minhash import MinHashDuplicate
from clipmill.stages.dedup.phash import PHashDuplicate
from clipmill.stages.ops.tables.keeper import Keep
from tests.memory import MemoryContext
from tests.stages.dedup.test_minhash import WORDS, pieces
from tests.stages.dedup.test_phash import near_copies

KEEP = Keep(column="score", order="desc")


def rows_of(rng, rows: int, **column) -> pa.Table:
    uid = [rng.bytes(16) for _ in range(rows)]
    score = pa.array([None, *rng.integers(0, 4, rows - 1)], pa.float32())
    return pa.table({"uid": pa.array(uid, pa.binary(16)), **column, "score": score})


def by_hand(rows: pa.Table, values: list, nearness, equal) -> list[tuple]:
    """The best row of each value with that of each near one, and with its own like."""
    places = [n for n, value in enumerate(values) if value is not None]
    uid, score = rows["uid"].to_pylist(), rows["score"].to_pylist()
    places.sort(key=lambda n: (score[n] is None, -(score[n] or 0), uid[n]))
    best: dict = {}
    for n in places:
        best.setdefault(values[n], n)
    found = [(best[values[n]], n, equal) for n in places if best[values[n]] != n]
    for one, other in combinations(best, 2):
        near = nearness(one, other)
        found += [] if near is None else [(best[one], best[other], near)]
    return sorted((*sorted((uid[a], uid[b])), near) for a, b, near in found)


def written(stage, ctx, shards) -> list[tuple]:
    stage.run(Inputs(rows=shards), ctx)
    table = pq.read_table(ctx.out / "pairs.parquet")
    return list(zip(*table.to_pydict().values(), strict=True))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """As many parts of everything as a large pool has."""
    monkeypatch.setattr(MemoryContext, "partition_rows", 9)
    monkeypatch.setattr(hamming, "CROWD_CODES", 3)
    monkeypatch.setattr(hamming, "LOOK_UP", 0)
    monkeypatch.setattr(hamming, "FOREST_PAIRS", 4)
    monkeypatch.setattr(minhash, "PARTITION_BYTES", 900)
    monkeypatch.setattr(minhash, "BLOCK_BYTES", 300)
    monkeypatch.setattr(pairs, "RANGE_ROWS", 5)


@pytest.mark.slow("many drawn sets against all pairs")
def test_hashes_are_paired_as_by_looking_at_all(memory_shards, memory_context):
    for seed in range(12):
        rng = np.random.default_rng(seed)
        rows, radius = int(rng.integers(1, 60)), int(rng.integers(0, 7))
        codes = near_copies(rng, rows)
        whole = rows_of(rng, rows, phash=pa.array(codes, pa.uint64()))

        def nearness(one, other, radius=radius):
            return d if (d := (one ^ other).bit_count()) <= radius else None

        stage = PHashDuplicate(max_distance=radius, keep=KEEP, pairs=True)
        found = written(stage, memory_context(), memory_shards(whole[:7], whole[7:]))
        assert found == by_hand(whole, codes, nearness, 0), seed


def test_texts_are_paired_as_by_looking_at_all(memory_shards, memory_context):
    """With so many bands that every pair at the floor is compared."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        rows, floor = int(rng.integers(1, 40)), np.float32(rng.choice([0.3, 0.5, 0.8, 1]))
        texts = [" ".join(rng.choice(WORDS, int(rng.integers(1, 6)))) for _ in range(rows)]
        texts = [rng.choice([None, text], p=[0.1, 0.9]) for text in texts]
        whole = rows_of(rng, rows, text=pa.array(texts, pa.string()))

        def nearness(one, other, floor=floor):
            a, b = pieces(one, "word", 1), pieces(other, "word", 1)
            jaccard = np.float32(len(a & b) / len(a | b))
            return jaccard if jaccard >= floor else None

        stage = MinHashDuplicate(
            **{"min_jaccard": float(floor), "unit": "word", "size": 1, "keep": KEEP, "pairs": True},
            **{"permutations": 256, "min_recall": 0.9999},
        )
        found = written(stage, memory_context(), memory_shards(whole[:7], whole[7:]))
        assert found == by_hand(whole, texts, nearness, 1), seed


@pytest.mark.slow("four whole searches")
@pytest.mark.parametrize(
    "stage",
    [
        PHashDuplicate(max_distance=4, pairs=True),
        MinHashDuplicate(min_jaccard=0.4, size=2, pairs=True),
    ],
    ids=["phash", "minhash"],
)
def test_the_columns_are_the_same_as_without_the_file(stage, memory_shards, memory_context):
    rng = np.random.default_rng(3)
    texts = [" ".join(rng.choice(WORDS, int(rng.integers(2, 9)))) for _ in range(90)]
    codes = pa.array(near_copies(rng, 90), pa.uint64())
    whole = rows_of(rng, 90, text=pa.array(texts, pa.string()), phash=codes)
    ctx, other = memory_context(), memory_context()
    found = written(stage, ctx, memory_shards(whole))
    assert len(found) > 20
    settings = {name: getattr(stage, name) for name in stage.__dataclass_fields__}
    type(stage)(**settings | {"pairs": False}).run(Inputs(rows=memory_shards(whole)), other)
    assert not (other.out / "pairs.parquet").exists()
    assert pa.concat_tables(other.stored).equals(pa.concat_tables(ctx.stored))


def test_many_equal_rows_make_as_many_pairs_and_no_more(memory_shards, memory_context, monkeypatch):
    monkeypatch.setattr(MemoryContext, "partition_rows", 100_000)
    monkeypatch.setattr(pairs, "RANGE_ROWS", 2**20)
    rng = np.random.default_rng(0)
    whole = rows_of(rng, 3_000, phash=pa.array(np.full(3_000, 7, np.uint64)))
    stage = PHashDuplicate(pairs=True, keep=KEEP)
    stage.run(Inputs(rows=memory_shards(whole)), ctx := memory_context())
    assert pq.read_metadata(ctx.out / "pairs.parquet").num_rows == 2_999


def test_more_pairs_than_memory_holds_are_refused(memory_shards, memory_context, monkeypatch):
    monkeypatch.setattr(hamming, "MAX_PAIRS", 20)
    rng = np.random.default_rng(0)
    whole = rows_of(rng, 40, phash=pa.array(range(40), pa.uint64()))
    with pytest.raises(StageError, match="more than 20 pairs within 4 bits") as error:
        written(PHashDuplicate(max_distance=4, pairs=True), memory_context(), memory_shards(whole))
    assert "max_distance" in error.value.args[2]


@pytest.mark.parametrize("stage", [PHashDuplicate, MinHashDuplicate])
def test_what_was_stored_without_pairs_stays_good(stage):
    assert "pairs" not in settings_of(stage())
    assert settings_of(stage(pairs=True))["pairs"] is True
