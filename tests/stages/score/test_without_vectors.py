"""Scores of pairs: a shard without a vector, in lists of no width, and vectors of two widths."""

import numpy as np
import pyarrow as pa
import pytest

from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import StageError
from clipmill.stages.score.chance import AboveChance
from clipmill.stages.score.clip_score import clip_score
from clipmill.stages.score.hyperbolic import Hyperbolic
from clipmill.stages.score.mix import Learn, Mix
from clipmill.stages.score.negclip import NegClip

STAGES = [
    AboveChance(),
    Hyperbolic(),
    Mix(learn=Learn(columns=("a",), good="good", by="flyt")),
    NegClip(batch=4, partitions=1),
]


def shard(first: int, image: int | None, text: int | None) -> pa.Table:
    """Rows with vectors so wide; None: without one."""
    rng, rows = np.random.default_rng(first), range(first, first + 50)
    columns = {
        f"{of}_embedding": pa.array(
            [None if wide is None else rng.random(wide) for _ in rows], pa.list_(pa.float32())
        )
        for of, wide in (("image", image), ("text", text))
    }
    columns |= {"uid": pa.array([row.to_bytes(16, "big") for row in rows], pa.binary(16))}
    return pa.table({**columns, "a": rng.random(50), "good": [row % 2 == 0 for row in rows]})


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: type(stage).__name__)
def test_a_shard_without_a_vector_spares_the_others(stage, memory_shards, memory_context):
    bare = shard(51, None, None), shard(101, 8, None), shard(151, None, 8)
    for place in (0, 1):
        ctx, tables = memory_context(), list(bare)
        tables.insert(place, shard(1, 8, 8))
        stage.run(Inputs(rows=memory_shards(*tables)), ctx)
        stored = pa.concat_tables(ctx.stored).sort_by("uid")[stage.writes[0].name]
        assert stored[:50].null_count == 0
        if not isinstance(stage, Mix):  # whose columns all rows have
            assert stored[50:].null_count == 150


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: type(stage).__name__)
def test_vectors_of_two_widths_are_an_error_that_names_both(stage, memory_shards, memory_context):
    with pytest.raises(StageError, match="image embeddings 8 wide, and texts 6 wide"):
        stage.run(Inputs(rows=memory_shards(shard(1, 8, 6))), memory_context())


def test_a_clip_score_without_a_vector_in_the_batch_is_null():
    assert clip_score(shard(1, 8, None))["clip_score"].null_count == 50
    assert set(clip_score(shard(1, None, 8))["reason"].to_pylist()) == {"no_image_embedding"}
    with pytest.raises(StageError, match="image embeddings 8 wide, and texts 6 wide"):
        clip_score(shard(1, 8, 6))
