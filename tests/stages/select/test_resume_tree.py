"""select.balanced_tree in the engine: killed in any call, it goes on from there."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from metadata.storage import Storage
from pipeline.engine.run import run_plan
from pipeline.executors.local import LocalExecutor
from pipeline.planning.plan import make_plan
from pipeline.planning.recipe import Recipe
from stages.select import _levels
from tests.stages.killed import DiesOnceACall, Watcher, rows_of, until_it_ends

ROWS = 120


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors")
    rng = np.random.default_rng(0)
    uids = [f"{number:032x}" for number in rng.permutation(ROWS)]
    pq.write_table(pa.table({"uid": uids, "url": uids, "text": uids}), folder / "0.parquet")
    vector_ND = rng.standard_normal((9, 512))[rng.integers(0, 9, ROWS)]
    vector_ND += 0.5 * rng.standard_normal((ROWS, 512))
    np.savez(folder / "0.npz", b32_img=vector_ND.astype(np.float16))
    return folder


def test_killed_in_every_call_it_goes_on_and_stores_the_same(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(_levels, "PART", 2)  # several pieces a round
    clusters = {
        "uses": "cluster.kmeans",
        "from": "pool",
        "column": "b32_img",
        "clusters": 14,
        "rounds": 1,
    }
    tree = {"uses": "select.balanced_tree", "from": "clusters", "centroids": "stage:clusters"}
    stages = {
        "pool": {"uses": "ingest.datacomp", "path": str(pool), "shard_rows": 50},
        "clusters": clusters,
        "tree": {**tree, "levels": [5, 2], "rounds": 2, "rows": 40},
    }
    plan = make_plan(Recipe(name="it", path="it.yaml", seed=0, stages=stages))

    def run(folder, watcher):
        outcome = run_plan(plan, Storage(str(folder)), LocalExecutor(0), watcher)
        writes = plan.stages["tree"].stage.writes
        return rows_of(outcome, "tree", ["uid", *(column.name for column in writes), "reason"])

    whole, dying = Watcher(), DiesOnceACall("tree")
    expected = run(tmp_path / "whole", whole)
    assert 30 < sum(row["keep"] for row in expected) < 50
    assert until_it_ends(lambda: run(tmp_path / "killed", dying)) == expected
    assert {"01-iterate.0001.01-reduce", "03-iterate.0001.01-reduce"} <= dying.survived, (
        "rounds too"
    )
    files = sorted(tmp_path.glob("*/stages/tree-*/out/tree.parquet"))
    assert len(files) == 2
    assert len({path.read_bytes() for path in files}) == 1
