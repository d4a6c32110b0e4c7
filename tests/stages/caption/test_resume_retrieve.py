"""caption.retrieve in the engine: killed in any call it ends the same, by pairs and by cells."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from metadata.storage import Storage
from pipeline.engine.run import run_plan
from pipeline.executors.local import LocalExecutor
from pipeline.planning.plan import make_plan
from pipeline.planning.recipe import Recipe
from tests.stages.killed import DiesOnceACall, Watcher, rows_of, until_it_ends

ROWS = 240


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Rows with a vector each, which stands for their image and for their caption."""
    path = tmp_path_factory.mktemp("texts") / "0.parquet"
    rng = np.random.default_rng(0)
    uids = [f"{number:032x}" for number in rng.permutation(ROWS)]
    texts = [f"a picture of {number % 90}" for number in range(ROWS)]
    vectors = rng.integers(-3, 4, (90, 4))[np.arange(ROWS) % 90].astype(np.float32)
    vectors = pa.array(vectors.tolist(), pa.list_(pa.float32()))
    pq.write_table(pa.table({"uid": uids, "text": texts, "vector": vectors}), path)
    return path.parent


def ran(pool, folder, watcher, **settings) -> list:
    source = {"path": str(pool), "uid_col": "uid", "caption_col": "text", "shard_rows": 70}
    source |= {"image_embedding_col": "vector", "embedding_width": 4}
    near = {"query": "image_embedding", "column": "image_embedding", **settings}
    stages = {
        "pool": {"uses": "ingest.parquet", **source},
        "cells": {"uses": "cluster.kmeans", "from": "pool", "clusters": 5},
        "near": {"uses": "caption.retrieve", "from": "pool", **near},
    }
    plan = make_plan(Recipe(name="it", path="it.yaml", seed=0, stages=stages))
    outcome = run_plan(plan, Storage(str(folder)), LocalExecutor(0), watcher)
    return rows_of(outcome, "near", ["uid", "captions", "caption_cosines"])


@pytest.mark.chaos  # kills
def test_killed_in_any_call_it_ends_the_same_and_all_cells_give_what_all_pairs_give(pool, tmp_path):
    whole = ran(pool, tmp_path / "whole", Watcher())
    assert all(len(row["captions"]) == 3 for row in whole)
    dying = DiesOnceACall("near")
    assert until_it_ends(lambda: ran(pool, tmp_path / "dying", dying)) == whole
    celled = {"centroids": "stage:cells", "cells": 5}
    dying = DiesOnceACall("near")
    assert until_it_ends(lambda: ran(pool, tmp_path / "cells", dying, **celled)) == whole
    assert len(dying.survived) >= 3
