"""Rows that an earlier select dropped: each dedup stage leaves them out; nobody goes for them."""

import pyarrow as pa
import pytest

from clipmill.pipeline.dataset import Inputs
from clipmill.stages.dedup.exact import ExactDuplicate
from clipmill.stages.dedup.minhash import MinHashDuplicate
from clipmill.stages.dedup.phash import PHashDuplicate
from clipmill.stages.dedup.semantic import SemanticDuplicate

KEPT = [False, True, None, True, True]  # five copies, the best first
STAGES = [
    ExactDuplicate(),
    ExactDuplicate(by="caption"),
    ExactDuplicate(columns=("text", "phash")),
    PHashDuplicate(),
    MinHashDuplicate(),
    SemanticDuplicate(),
]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: type(stage).__name__)
def test_of_copies_the_best_that_is_left_stays(stage, memory_shards, memory_context):
    rows = len(KEPT)
    vector = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2.0] * rows, pa.float32()), 2)
    pool = pa.table(
        {
            "uid": pa.array([bytes([n]) * 16 for n in range(rows)], pa.binary(16)),
            "sha256": ["one"] * rows,
            "text": ["a red fox on a hill"] * rows,
            "phash": pa.array([5] * rows, pa.uint64()),
            "image_embedding": vector,
            "cluster_id": pa.array([0] * rows, pa.int32()),
            "centroid_cosine": pa.array([0.5] * rows, pa.float32()),
            "keep": KEPT,
        }
    )
    ctx = memory_context()
    stage.run(Inputs(rows=memory_shards(pool)), ctx)
    out = pa.concat_tables(ctx.stored).to_pylist()
    keeper = stage.writes[-1].name
    assert [row["reason"] for row in out] == [None if kept else "dropped_before" for kept in KEPT]
    first = bytes([KEPT.index(True)]) * 16
    assert [row[keeper] for row in out] == [None, None, None, first, first]
    assert "keep" in {column.name for column in stage.optional_reads}
