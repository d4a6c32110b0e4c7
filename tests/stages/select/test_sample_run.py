"""select.sample in the engine: partitions stay small."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine import context
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.stages.select import sample as groups
from tests.stages.killed import Watcher, rows_of

ROWS = 3_000


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Half of the rows of one host, the others of nearly as many hosts as rows."""
    folder = tmp_path_factory.mktemp("hosts")
    rng = np.random.default_rng(0)
    uids = [f"{number:032x}" for number in rng.permutation(ROWS)]
    hosts = np.where(rng.random(ROWS) < 0.5, 0, rng.integers(1, 10 * ROWS, ROWS))
    urls = [f"http://h{host}.de/{number}" for number, host in enumerate(hosts)]
    pq.write_table(pa.table({"uid": uids, "url": urls, "text": uids}), folder / "0.parquet")
    return folder


@pytest.fixture
def run(pool, tmp_path):
    """Runs a sample into a folder; the rows that it stored."""

    def run(folder, watcher, shard_rows=500, **settings):
        stages = {
            "pool": {"uses": "ingest.datacomp", "path": str(pool), "shard_rows": shard_rows},
            "some": {"uses": "select.sample", "from": "pool", **settings},
        }
        plan = make_plan(Recipe(name="it", path="it.yaml", seed=0, stages=stages))
        outcome = run_plan(plan, Storage(str(tmp_path / folder)), LocalExecutor(0), watcher)
        return rows_of(outcome, "some", ["uid", "keep", "sample_rank", "reason"])

    return run


def test_no_partition_grows_with_the_rows_of_a_value_or_with_the_number_of_values(run, monkeypatch):
    monkeypatch.setattr(groups, "SLICE_ROWS", 20)
    monkeypatch.setattr(context, "PARTITION_ROWS", 150)
    met: list[int] = []

    def seen(cut, known, rows):
        met.append(len(rows))
        assert len(known) < 2 * ROWS / groups.SLICE_ROWS
        return placed(cut, known, rows)

    placed = groups.with_place
    monkeypatch.setattr(groups, "with_place", seen)
    run("small", Watcher(), per="domain", at_most=2)
    assert len(met) == ROWS // 150
    assert max(met) < 3 * 150  # by the hash, as any shuffle
