"""KMeans reads each stored shard once, and without room on scratch gives the same bytes."""

import shutil
from collections import Counter
from pathlib import Path

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
from clipmill.pipeline.progress import Lines
from clipmill.stages.ops.vectors.matrices import from_matrix

SHARDS, ROWS = 3, 40


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Runs k-means over a pool of vectors: how often it opens each of the pool's files."""
    row_ND = np.random.default_rng(0).standard_normal((SHARDS * ROWS, 4)).astype(np.float32)
    urls = [f"http://a.test/{number}" for number in range(len(row_ND))]
    pq.write_table(
        pa.table({"url": urls, "text": urls, "vector": from_matrix(row_ND)}),
        tmp_path / "rows.parquet",
    )
    given = {"uses": "ingest.parquet", "path": str(tmp_path / "rows.parquet"), "shard_rows": ROWS}
    pool = {**given, "image_embedding_col": "vector", "embedding_width": 4}
    means = {"uses": "cluster.kmeans", "from": "pool", "clusters": 5, "rounds": 4}
    counts: Counter[str] = Counter()
    whole = Storage.open

    def counted(storage: Storage, name: str):
        counts[name] += "/pool-" in storage.path and name.endswith(".parquet")
        return whole(storage, name)

    def run(out: str) -> Counter[str]:
        executor = LocalExecutor(0)
        for stages in ({"pool": pool}, {"pool": pool, "means": means}):
            plan = make_plan(Recipe(name="it", path="it.yaml", seed=0, stages=stages))
            with monkeypatch.context() as patch:
                patch.setattr(Storage, "open", counted)
                counts.clear()
                assert run_plan(plan, Storage(str(tmp_path / out)), executor, Lines()).complete
        executor.close()
        return +counts

    return run


def clusters(folder: Path) -> dict[str, bytes]:
    """The files that k-means stored, by name."""
    return {path.name: path.read_bytes() for path in folder.glob("stages/means-*/**/*.parquet")}


def test_each_stored_shard_is_read_once(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(local_shards, "KEPT_FREE", 0)  # a copy has room on a nearly full disk too
    once = opened("kept")
    assert len(once) == SHARDS
    assert set(once.values()) == {1}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9e12, 9e12, 0))
    assert min(opened("without").values()) > 4
    without = clusters(tmp_path / "without")
    without.pop("records.parquet", None)
    kept = clusters(tmp_path / "kept")
    kept.pop("records.parquet", None)  # which holds seconds
    assert kept == without
    assert len(kept) > SHARDS
