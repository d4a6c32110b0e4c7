"""What the builder of a pool planted, and what of it the stages find: recall by kind, precision.

Floors, for a drawn pool of a few plain shapes in ten colours, to which a grey hash is blind.
"""

from urllib.parse import urlsplit

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dataset import Inputs
from pipeline.pools.build import build_pool
from stages.annotate.phash import PHash
from stages.dedup.minhash import MinHashDuplicate
from stages.dedup.phash import PHashDuplicate
from stages.ops.images import pixels_column
from tests.stages.dedup.test_minhash import expected

LARGEST_BYTES = 1 << 20  # what is planted beyond is a bomb


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """uid, text, hash and truth of every row of a drawn pool."""
    folder = tmp_path_factory.mktemp("planted") / "pool"
    build_pool("generated", folder, rows=400)
    rows = pq.read_table(folder / "metadata")

    def body(url: str) -> bytes | None:
        file = folder / "www" / urlsplit(url).path.lstrip("/")
        there = file.is_file() and file.stat().st_size < LARGEST_BYTES
        return file.read_bytes() if there else None

    uid = pa.array([bytes.fromhex(text) for text in rows["uid"].to_pylist()], pa.binary(16))
    image = pa.array(map(body, rows["url"].to_pylist()), pa.binary())
    batch = pa.table({"uid": uid, "image": image, "pixels": pixels_column(image)})
    phash = PHash().open(None)(batch)["phash"]
    truth = pl.read_parquet(folder / "truth.parquet")
    return pa.table({"uid": uid, "text": rows["text"], "phash": phash}), truth


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
