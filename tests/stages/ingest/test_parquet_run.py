"""A run over Parquet as Hugging Face has it: stages that read embeddings, an export, and back."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.outputs import OUT
from clipmill.metadata.passes import read_stage
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import load_recipe
from clipmill.pipeline.progress import Lines
from clipmill.stages.ingest.parquet import Parquet

ROWS, WIDTH = 60, 8
RECIPE = """
seed: 0
stages:
  pool:
    uses: ingest.parquet
    path: {path}
    image_col: image
    caption_col: captions
    image_embedding_col: of_image
    text_embedding_col: of_text
    embedding_width: 8
    extra: {{score: double, captions: "list<item: string>"}}
    shard_rows: 25
  fit: {{uses: score.clip_score, from: pool}}
  near: {{uses: cluster.kmeans, from: pool, clusters: 4, rounds: 2}}
  alike: {{uses: dedup.semantic, from: near}}
  kept:
    uses: select.where
    from: [fit, alike]
    where: clip_score >= 0.5 AND score > 0.1 AND earlier_cosine < 0.9999
  shards: {{uses: export.parquet, from: kept, columns: [score, captions]}}
"""


@pytest.fixture
def run(tmp_path):
    """The state of a run over 60 rows, and the vectors of their images and captions."""
    random = np.random.default_rng(0)
    image_ND = random.standard_normal((ROWS, WIDTH)).astype(np.float16)
    image_ND[31] = image_ND[30]  # a copy
    text_ND = (image_ND + random.standard_normal((ROWS, WIDTH)) * 0.3).astype(np.float16)
    vectors = [*map(list, image_ND[:-1]), None]
    images = [{"bytes": b"%d" % row, "path": f"{row}.jpg"} for row in range(ROWS)]
    columns = {
        "image": images,
        "captions": [["", f"caption {row}", "other"] for row in range(ROWS)],
        "of_image": pa.array(vectors, pa.list_(pa.float16())),
        "of_text": pa.array(list(map(list, text_ND)), pa.list_(pa.float16())),
        "score": np.arange(ROWS) / 10,
    }
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(path=tmp_path / "rows.parquet"))
    plan = make_plan(load_recipe(str(recipe), []))
    outcome = run_plan(plan, Storage(str(tmp_path / "run")), LocalExecutor(0), Lines())
    assert outcome.complete, outcome.stopped
    return outcome.state, image_ND.astype(np.float64), text_ND.astype(np.float64)


def values(state, stage: str, column: str) -> list:
    folder = state.stored[stage].folder
    shards = state.stages[stage].shards
    tables = [read_stage(folder, shards[shard], [column], 10) for shard in sorted(shards)]
    return [value for shard in tables for table in shard for value in table[column].to_pylist()]


def test_stages_read_given_embeddings_and_an_export_is_read_back(run):
    state, image_ND, text_ND = run
    score = values(state, "fit", "clip_score")
    norm_N = np.linalg.norm(image_ND, axis=1) * np.linalg.norm(text_ND, axis=1)
    cosine_N = (image_ND * text_ND).sum(axis=1) / norm_N
    np.testing.assert_allclose(score[:-1], cosine_N[:-1], atol=1e-6)
    assert score[-1] is None
    assert set(values(state, "near", "cluster_id")) == {0, 1, 2, 3, None}
    keep = values(state, "kept", "keep")
    assert 20 < sum(keep) < ROWS
    assert keep[30] + keep[31] == 1

    folder = Path(state.stored["shards"].folder.path, OUT)
    extra = {"score": "double", "captions": "list<item: string>"}
    back = Parquet(
        path=str(folder), image_col="image", caption_col="texts", uid_col="uid", extra=extra
    ).head(1000)
    uids = values(state, "pool", "uid")
    texts = values(state, "pool", "text")
    expected = {uids[row]: (b"%d" % row, texts[row], row / 10) for row in np.flatnonzero(keep)}
    columns = (back[name].to_pylist() for name in ("uid", "image", "text", "score"))
    assert {uid: tuple(it) for uid, *it in zip(*columns, strict=True)} == expected
    assert set(map(len, back["captions"].to_pylist())) == {3}
    assert back["reason"].null_count == len(back) == len(expected)
