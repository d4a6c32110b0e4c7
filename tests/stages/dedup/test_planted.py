"""What the builder of a pool planted, and what of it the stages find: recall by kind, precision.

Floors, for a drawn pool of a few plain shapes in ten colours, to which a grey hash is blind, and
for a model without weights.
"""

from types import SimpleNamespace

import polars as pl
import pyarrow as pa
import pytest

from clipmill.pipeline.dataset import Inputs
from clipmill.stages.dedup.against import AgainstEvaluation
from clipmill.stages.dedup.exact import ExactDuplicate
from clipmill.stages.dedup.minhash import MinHashDuplicate
from clipmill.stages.dedup.phash import PHashDuplicate
from clipmill.stages.dedup.semantic import SemanticDuplicate
from clipmill.stages.embed.clip import ClipEmbedding
from clipmill.stages.ops.tables.keeper import Keep
from tests.stages.dedup.drawn import drawn_pool
from tests.stages.dedup.test_minhash import expected


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """All rows of a drawn pool with text, image, hash and embedding, their truth, the folder."""
    folder = tmp_path_factory.mktemp("planted") / "pool"
    rows, truth = drawn_pool(folder, 600)
    worker = SimpleNamespace(stage="emb", device="cpu", threads=1, model=None)
    embedded = ClipEmbedding(model="reference").open(worker)(rows)["image_embedding"]
    everywhere = pa.array([0] * len(rows), pa.int32())  # one cluster
    rows = rows.drop_columns(["pixels"]).append_column("image_embedding", embedded)
    return rows.append_column("cluster_id", everywhere), truth, folder


def with_truth(ctx, shards, stage, truth: pl.DataFrame) -> pl.DataFrame:
    """What a stage says of every row that it has something to say of, and the truth."""
    stage.run(Inputs(rows=shards), ctx)
    out = pl.DataFrame(pa.concat_tables(ctx.stored)).filter(pl.col("reason").is_null())
    return out.with_columns(pl.col(pl.Binary).bin.encode("hex")).join(truth, on="uid")


def test_planted_copies_are_found_at_four_bits(planted, memory_shards, memory_context):
    rows, truth, _ = planted
    stage = PHashDuplicate(max_distance=4)
    found = with_truth(memory_context(), memory_shards(rows), stage, truth)
    found = found.with_columns(best=pl.coalesce("duplicate_of", "uid"))
    found = found.with_columns(
        others=pl.len().over("dup_cluster") - 1, together=pl.len().over("dup_cluster", "best") - 1
    )
    copies = found.filter(pl.col("dup_kind").is_not_null(), pl.col("others") > 0)
    recall = dict(copies.group_by("dup_kind").agg((pl.col("together") > 0).mean()).iter_rows())
    assert recall["exact"] == 1
    assert recall["repost"] > 0.6
    assert recall["near"] > 0.15


def test_equal_hashes_mostly_are_copies(planted, memory_shards, memory_context):
    rows, truth, _ = planted
    stage = PHashDuplicate(max_distance=0)
    found = with_truth(memory_context(), memory_shards(rows), stage, truth)
    keepers = found.select(duplicate_of="uid", theirs="dup_cluster")
    dropped = found.join(keepers, on="duplicate_of")
    assert len(dropped) > 40
    assert (dropped["dup_cluster"] == dropped["theirs"]).mean() > 0.6


def test_similar_captions_are_found_and_no_others(planted, memory_shards, memory_context):
    rows = planted[0][:400]
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


def test_planted_copies_are_found_by_meaning(planted, memory_shards, memory_context):
    rows, truth, _ = planted
    stage = SemanticDuplicate(keep=Keep(column="phash", order="asc"))
    found = with_truth(memory_context(), memory_shards(rows), stage, truth)
    is_copy = pl.col("earlier_cosine") >= 0.97
    found = found.with_columns(
        others=pl.len().over("dup_cluster") - 1, copies=is_copy.sum().over("dup_cluster")
    )
    kinds = found.filter(pl.col("dup_kind").is_not_null(), pl.col("others") > 0)
    recall = dict(kinds.group_by("dup_kind").agg((pl.col("copies") > 0).mean()).iter_rows())
    assert recall["exact"] > 0.95
    assert recall["repost"] > 0.95
    assert recall["near"] > 0.4
    keepers = found.select(earlier_uid="uid", theirs="dup_cluster")
    dropped = found.filter(is_copy).join(keepers, on="earlier_uid")
    assert len(dropped) > 120
    assert (dropped["dup_cluster"] == dropped["theirs"]).mean() > 0.45


@pytest.mark.parametrize(
    ("settings", "is_near", "recall"),
    [
        ({}, pl.col("eval_distance") <= 2, 0.25),
        ({"compare": "embedding", "model": "reference"}, pl.col("eval_cosine") >= 0.97, 0.4),
    ],
    ids=["by hash", "by meaning"],
)
def test_planted_copies_of_evaluation_images_are_found(
    settings, is_near, recall, planted, memory_shards, memory_context
):
    rows, truth, folder = planted
    stage = AgainstEvaluation(tasks=str(folder / "eval"), **settings)
    found = with_truth(memory_context(), memory_shards(rows), stage, truth)
    copies = found.filter("eval_near")
    assert copies.filter(pl.col("near_op").is_null()).select(is_near.all()).item(), "unaltered"
    assert copies.select(is_near.mean()).item() > recall
    # The pool's own shapes are those of the evaluation images, in ten colours too.
    assert found.filter(is_near)["eval_near"].mean() > 8 * found["eval_near"].mean()
    assert found.select(is_near.mean()).item() < 0.06


def test_equal_pixels_are_copies_and_nothing_else_is(planted, memory_shards, memory_context):
    rows, truth, _ = planted
    ctx = memory_context()
    found = with_truth(ctx, memory_shards(rows), ExactDuplicate(by="pixels"), truth)
    found = found.with_columns(
        others=pl.len().over("dup_cluster") - 1,
        dropped=pl.col("duplicate_of").is_not_null().sum().over("dup_cluster"),
    )
    exact = found.filter(pl.col("dup_kind") == "exact", pl.col("others") > 0)
    assert (exact["dropped"] > 0).mean() > 0.95
    keepers = found.select(duplicate_of="uid", theirs="dup_cluster")
    dropped = found.join(keepers, on="duplicate_of")
    assert len(dropped) > 24
    assert (dropped["dup_cluster"] == dropped["theirs"]).all()
