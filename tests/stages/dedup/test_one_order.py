"""With one `keep` in all stages, each row goes for a better one: no two go for each other."""

import numpy as np
import pyarrow as pa

from clipmill.pipeline.dataset import Inputs
from clipmill.stages.dedup.exact import ExactDuplicate
from clipmill.stages.dedup.minhash import MinHashDuplicate
from clipmill.stages.dedup.phash import PHashDuplicate
from clipmill.stages.dedup.semantic import SemanticDuplicate
from clipmill.stages.ops.tables.keeper import Keep

ROWS = 80
KEEP = Keep(column="score", order="desc")
STAGES = [
    ExactDuplicate(columns=("cluster_id",), keep=KEEP),
    PHashDuplicate(max_distance=6, keep=KEEP),
    MinHashDuplicate(min_jaccard=0.4, keep=KEEP),
    SemanticDuplicate(keep=KEEP),
]


def test_whoever_goes_in_any_stage_goes_for_a_better_row(memory_shards, memory_context):
    rng = np.random.default_rng(2)
    words = np.array(["red", "fox", "hill", "sea", "blue"])
    score = [None if n % 9 == 0 else float(n % 5) for n in rng.permutation(ROWS)]
    uid = [bytes(rng.integers(0, 256, 16, np.uint8)) for _ in range(ROWS)]
    bits = np.uint64(1) << rng.integers(0, 12, (ROWS, 3), dtype=np.uint64)
    vector = rng.standard_normal((ROWS, 4)).astype(np.float32)
    pool = pa.table(
        {
            "uid": pa.array(uid, pa.binary(16)),
            "score": pa.array(score, pa.float32()),
            "phash": pa.array(np.bitwise_or.reduce(bits, axis=1)),
            "text": [" ".join(rng.choice(words, 4)) for _ in range(ROWS)],
            "image_embedding": pa.FixedSizeListArray.from_arrays(pa.array(vector.ravel()), 4),
            "cluster_id": pa.array(rng.integers(0, 9, ROWS), pa.int32()),
        }
    )
    order = sorted(range(ROWS), key=lambda n: (-np.inf if score[n] is None else -score[n], uid[n]))
    order.sort(key=lambda n: score[n] is None)  # rows without a score come last
    rank = {uid[n]: place for place, n in enumerate(order)}
    for stage in STAGES:
        ctx = memory_context()
        stage.run(Inputs(rows=memory_shards(pool)), ctx)
        out = pa.concat_tables(ctx.stored)
        named = [
            (row, keeper)
            for row, keeper in zip(
                out["uid"].to_pylist(), out[stage.writes[-1].name].to_pylist(), strict=True
            )
            if keeper is not None
        ]
        assert len(named) > ROWS / 4, type(stage).__name__
        assert all(rank[keeper] < rank[row] for row, keeper in named), type(stage).__name__
