"""The recipe of DataComp's small scale, planned on a pool in the published layout."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.stages.task_folders import write_tasks

ROWS = 20


@pytest.fixture
def published(tmp_path):
    """metadata/SHARD.parquet and SHARD.npz side by side, and two tasks."""
    metadata = tmp_path / "metadata"
    metadata.mkdir()
    score = np.linspace(0.1, 0.4, ROWS, dtype=np.float32)
    columns = {
        "uid": [f"{number:032x}" for number in range(ROWS)],
        "url": [f"http://a.test/{number}.jpg" for number in range(ROWS)],
        "text": [f"a picture of {number}" for number in range(ROWS)],
        "original_width": pa.array([400] * ROWS, pa.int64()),
        "original_height": pa.array([300] * ROWS, pa.int64()),
        "clip_b32_similarity_score": score,
        "clip_l14_similarity_score": score,
        "face_bboxes": pa.array([[]] * ROWS, pa.list_(pa.list_(pa.float64()))),
        "sha256": ["0" * 64] * ROWS,
    }
    pq.write_table(pa.table(columns), metadata / "00000000.parquet")
    vectors = {f"l14_{side}": np.zeros((ROWS, 768), np.float16) for side in ("img", "txt")}
    np.savez(metadata / "00000000.npz", **vectors)
    write_tasks(tmp_path / "tasks")
    return tmp_path


def test_it_plans_from_the_published_layout_to_the_scores(published, clipmill):
    places = ("--set", f"pool.path={published}/metadata")
    places += ("--set", f"scores.tasks={published}/tasks")
    said = clipmill("plan", "datacomp-small", *places, "--json")
    assert (said.code, "'models' wants 4,096 rows, and there are 20" in said.err) == (2, True)
    places += ("--set", "models.batch_size=4")
    said = clipmill("plan", "datacomp-small", *places, "--json")
    assert said.code == 0, said.err
    stages = {stage["name"]: stage for stage in json.loads(said.out)["stages"]}
    assert list(stages) == ["pool", "subset", "uids", "images", "shards", "models", "scores"]


def test_its_filter_runs_on_that_layout_and_keeps_datacomps_n_and_one(published, clipmill):
    out = published / "run"
    places = ("--set", f"pool.path={published}/metadata")
    said = clipmill(
        *("run", "datacomp-small", *places, "--until", "uids", "--out", out, "--workers", "0")
    )
    assert said.code == 0, said.out + said.err
    (uids,) = out.glob("stages/uids-*/out/*.npy")
    assert len(np.load(uids)) == ROWS * 3 // 10 + 1
