"""`keep` by several columns, in each dedup stage, against the order that Python sorts them in."""

import numpy as np
import pyarrow as pa
import pytest

from clipmill.pipeline.dataset import Inputs
from clipmill.stages.dedup.exact import ExactDuplicate
from clipmill.stages.dedup.minhash import MinHashDuplicate
from clipmill.stages.dedup.phash import PHashDuplicate
from clipmill.stages.dedup.semantic import SemanticDuplicate
from clipmill.stages.ops.tables.keeper import Keep

ROWS = 60
BY_SCORE, BY_AREA = Keep(column="score", order="desc"), Keep(column="area", order="asc")
STAGES = [
    ExactDuplicate(columns=("cluster_id",)),
    PHashDuplicate(max_distance=6),
    MinHashDuplicate(min_jaccard=0.4),
    SemanticDuplicate(),
]


def pool(seed: int) -> pa.Table:
    """Near rows of few scores and areas, some of neither."""
    rng = np.random.default_rng(seed)
    words = np.array(["red", "fox", "hill", "sea", "blue"])
    bits = np.uint64(1) << rng.integers(0, 12, (ROWS, 3), dtype=np.uint64)
    vector = rng.standard_normal((ROWS, 4)).astype(np.float32)
    return pa.table(
        {
            "uid": pa.array([rng.bytes(16) for _ in range(ROWS)], pa.binary(16)),
            "score": pa.array(rng.choice([None, 0.1, 0.5, float("nan")], ROWS), pa.float32()),
            "area": pa.array(rng.choice([None, -3, 0, 2**40], ROWS), pa.int64()),
            "phash": pa.array(np.bitwise_or.reduce(bits, axis=1)),
            "text": [" ".join(rng.choice(words, 4)) for _ in range(ROWS)],
            "image_embedding": pa.FixedSizeListArray.from_arrays(pa.array(vector.ravel()), 4),
            "cluster_id": pa.array(rng.integers(0, 9, ROWS), pa.int32()),
        }
    )


def in_order(rows: pa.Table, *keys) -> pa.Table:
    """The rows and, as `rank`, the place that each has when Python sorts them by these keys."""
    order = sorted(rows.to_pylist(), key=lambda row: (*(key(row) for key in keys), row["uid"]))
    place = {row["uid"]: number for number, row in enumerate(order)}
    return rows.append_column("rank", pa.array([place[uid] for uid in rows["uid"].to_pylist()]))


def by_score(row):
    missing = row["score"] is None or np.isnan(row["score"])
    return missing, 0 if missing else -row["score"]


def by_area(row):
    return row["area"] is None, row["area"] or 0


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: type(stage).__name__)
@pytest.mark.parametrize(
    ("keep", "keys"),
    [
        ((BY_SCORE, BY_AREA), (by_score, by_area)),
        ((BY_AREA, BY_SCORE), (by_area, by_score)),
        ((BY_AREA,), (by_area,)),
        ((), ()),
    ],
    ids=["score, area", "area, score", "one", "none"],
)
def test_where_the_first_leaves_rows_equal_the_next_decides(
    stage, keep, keys, memory_shards, memory_context
):
    rows = in_order(pool(0), *keys)
    found = []
    for order in (keep, Keep(column="rank", order="asc")):
        ctx = memory_context()
        settings = {name: getattr(stage, name) for name in stage.__dataclass_fields__}
        it = type(stage)(**settings | {"keep": order})
        it.run(Inputs(rows=memory_shards(rows[:7], rows[7:7], rows[7:])), ctx)
        found.append(pa.concat_tables(ctx.stored).unify_dictionaries())
    assert found[0].equals(found[1])
    assert found[0][stage.writes[-1].name].null_count < ROWS


def test_all_columns_are_read():
    for stage in STAGES:
        it = type(stage)(keep=(BY_SCORE, BY_AREA))
        assert {"score", "area"} <= {column.name for column in it.reads}
