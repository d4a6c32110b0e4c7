"""select.where with `top` in the engine: each shard is judged once."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine import local_shards
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.stages.select import where
from tests.stages.killed import Watcher, rows_of

ROWS, SHARD_ROWS = 2_000, 100  # 20 shards: several units
WIDE = "original_width >= 300"


@pytest.fixture(scope="module")
def widths_of(tmp_path_factory):
    """A pool with few different widths, so that the cut goes down into the uids; and its rows."""
    folder = tmp_path_factory.mktemp("widths")
    rng = np.random.default_rng(0)
    uids = [f"{number:032x}" for number in rng.permutation(ROWS)]
    widths = rng.integers(298, 304, ROWS)
    texts = {"url": uids, "text": uids}
    pq.write_table(pa.table({"uid": uids, "original_width": widths, **texts}), folder / "0.parquet")
    return folder, list(zip(uids, widths.tolist(), strict=True))


@pytest.fixture
def run(widths_of, tmp_path):
    """Runs the stage into a folder; the rows that it stored."""
    path, _ = widths_of

    def run(folder, watcher):
        top = {"column": "original_width", "rows": 700}
        stages = {
            "pool": {"uses": "ingest.datacomp", "path": str(path), "shard_rows": SHARD_ROWS},
            "best": {"uses": "select.where", "from": "pool", "where": WIDE, "top": top},
        }
        plan = make_plan(Recipe(name="it", path="it.yaml", seed=0, stages=stages))
        outcome = run_plan(plan, Storage(str(tmp_path / folder)), LocalExecutor(0), watcher)
        return rows_of(outcome, "best", ["uid", "keep", "reason"])

    return run


def test_each_shard_is_judged_once_though_the_cut_takes_many_digits(run, widths_of, monkeypatch):
    judged = []

    def counting(rows, *, stage):
        judged.append(len(rows))
        return judge(rows, stage=stage)

    judge = where.judge
    monkeypatch.setattr(where, "judge", counting)
    monkeypatch.setattr(local_shards, "KEPT_FREE", 0)  # a copy has room on a nearly full disk too
    stored = run("once", Watcher())
    assert judged == [SHARD_ROWS] * (ROWS // SHARD_ROWS)
    wide = [(-width, uid) for uid, width in widths_of[1] if width >= 300]
    assert {row["uid"].hex() for row in stored if row["keep"]} == {u for _, u in sorted(wide)[:700]}
