"""Pruning by clusters through the commands: run, swept, asked about."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.uid import uid_of

ROWS = 60
RECIPE = """
stages:
  pool:     {uses: ingest.datacomp, path: %s, shard_rows: 25}
  clusters: {uses: cluster.kmeans, from: pool, column: b32_img, clusters: 4, rounds: 3}
  wide:     {uses: select.density, from: clusters, centroids: "stage:clusters", rows: 20}
  far:      {uses: select.prototypes, from: clusters, rows: 20}
  uids:     {uses: export.uid_list, from: wide}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruning")
    (folder / "pool").mkdir()
    urls = [f"https://test/{row}" for row in range(ROWS)]
    rows = {"uid": [uid_of(url, "").hex() for url in urls], "url": urls, "text": [""] * ROWS}
    pq.write_table(pa.table(rows), folder / "pool" / "0.parquet")
    vector_ND = np.random.default_rng(0).standard_normal((ROWS, 512)).astype(np.float16)
    np.savez(folder / "pool" / "0.npz", b32_img=vector_ND)
    path = folder / "it.yaml"
    path.write_text(RECIPE % (folder / "pool"))
    return path


def test_pruning_is_swept_and_explained(recipe, clipmill, tmp_path):
    run = tmp_path / "run"
    assert clipmill("run", recipe, "--out", run, "--workers", 0).code == 0
    for stage in ("wide", "far"):
        swept = clipmill(
            "sweep", "--run", run, "--stage", stage, "--vary", "rows=10:30:10", "--json"
        ).json
        assert [(at["kept"], at["won"], at["lost"]) for at in swept["points"]] == [
            (10, 0, 10),
            (20, 0, 0),
            (30, 10, 0),
        ]
        (folder,) = run.glob(f"stages/{stage}-*")
        (summary,) = (json.loads(file.read_text()) for file in (folder / "out").glob("*.json"))
        assert (summary["asked"], summary["kept"]) == (20, 20)
    lost = swept["points"][2]["samples"]["won"][0]["uid"]
    why = clipmill("why", lost, "--run", run).out
    said = r"dropped by 'far': pruned; its cluster in 'clusters' is \d; it is row \d+ there, and \d"
    assert re.search(said, why), why
