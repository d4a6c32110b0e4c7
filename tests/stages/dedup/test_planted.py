"""What the builder of a pool planted, and what of it the stages find: recall by kind, precision.

Floors, for a drawn pool of a few plain shapes in ten colours, to which a grey hash is blind.
"""

import polars as pl
import pyarrow as pa
import pytest

from pipeline.dataset import Inputs
from stages.dedup.minhash import MinHashDuplicate
from stages.dedup.phash import PHashDuplicate
from tests.stages.dedup.drawn import drawn_pool
from tests.stages.dedup.test_minhash import expected


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """uid, text, hash and truth of every row of a drawn pool."""
    rows, truth = drawn_pool(tmp_path_factory.mktemp("planted") / "pool", 400)
    return rows.select(["uid", "text", "phash"]), truth


def with_groups(ctx, shards, stage, truth: pl.DataFrame) -> pl.DataFrame:
    """The truth of every row that has a hash, and the best row of its group."""
    stage.run(Inputs(rows=shards), ctx)
    out = pl.DataFrame(pa.concat_tables(ctx.stored)).filter(pl.col("reason").is_null())
    hexed = out.select(
        uid=pl.col("uid").bin.encode("hex"), keeper=pl.col("duplicate_of").bin.encode("hex")
    )
    return hexed.with_columns(best=pl.coalesce("keeper", "uid")).join(truth, on="uid")


def test_planted_copies_are_found_at_four_bits(planted, memory_shards, memory_context):
    rows, truth = planted
    found = with_groups(
        memory_context(), memory_shards(rows), PHashDuplicate(max_distance=4), truth
    )
    found = found.with_columns(
        others=pl.len().over("dup_cluster") - 1, together=pl.len().over("dup_cluster", "best") - 1
    )
    copies = found.filter(pl.col("dup_kind").is_not_null(), pl.col("others") > 0)
    recall = dict(copies.group_by("dup_kind").agg((pl.col("together") > 0).mean()).iter_rows())
    assert recall["exact"] == 1
    assert recall["repost"] > 0.6
    assert recall["near"] > 0.15


def test_equal_hashes_mostly_are_copies(planted, memory_shards, memory_context):
    rows, truth = planted
    found = with_groups(
        memory_context(), memory_shards(rows), PHashDuplicate(max_distance=0), truth
    )
    keepers = found.select(keeper="uid", theirs="dup_cluster")
    dropped = found.join(keepers, on="keeper")
    assert len(dropped) > 40
    assert (dropped["dup_cluster"] == dropped["theirs"]).mean() > 0.6


def test_similar_captions_are_found_and_no_others(planted, memory_shards, memory_context):
    rows, _ = planted
    ctx = memory_context()
    MinHashDuplicate(min_jaccard=0.7).run(Inputs(rows=memory_shards(rows)), ctx)
    found = pa.concat_tables(ctx.stored)["joined_at"].to_pylist()
    every, _ = expected(
        rows.append_column("score", pa.array([0.0] * len(rows))), 0.7, "character", 5, True
    )
    every = [height and -height for height in every]
    assert all(f is None or f <= e for f, e in zip(found, every, strict=True))
    duplicates = sum(e is not None for e in every)
    assert duplicates > 40
    assert sum(f == e for f, e in zip(found, every, strict=True) if e) / duplicates > 0.95
