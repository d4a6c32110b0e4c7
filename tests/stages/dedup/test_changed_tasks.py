"""dedup.against in the engine: rows are compared again where the tasks have changed."""

import json

import cv2
import numpy as np
import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import Recipe
from tests.stages.killed import Watcher, rows_of
from tests.stages.task_folders import write_tasks

ROWS = 90


@pytest.fixture
def run(tmp_path):
    """Runs the stage over pictures in a few colours and patterns; its rows, files and summary."""
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(ROWS):
        image = np.full((16, 16, 3), rng.integers(0, 256, 3) // 64 * 64, np.uint8)
        image[:: rng.integers(1, 5)] //= 2
        cv2.imwrite(str(tmp_path / "images" / f"{number:03d}.png"), image)
    write_tasks(tmp_path / "tasks")
    images, tasks = str(tmp_path / "images"), str(tmp_path / "tasks")
    stages = {
        "pool": {"uses": "ingest.image_folder", "path": images, "shard_rows": 40},
        "hash": {"uses": "annotate.phash", "from": "pool"},
        "leak": {"uses": "dedup.against", "from": "hash", "tasks": tasks},
    }

    def run():
        plan = make_plan(Recipe(name="it", path="it.yaml", seed=0, stages=stages))
        outcome = run_plan(plan, Storage(str(tmp_path / "run")), LocalExecutor(0), Watcher())
        names = [column.name for column in plan.stages["leak"].stage.writes]
        rows = rows_of(outcome, "leak", ["uid", *names, "reason"])
        folder = outcome.state.stages["leak"].folder
        files = sorted(entry.name for entry in folder.entries("out"))
        return rows, files, json.loads(folder.read("out/leaks.json"))

    return run


def test_where_tasks_change_rows_are_compared_again(run, tmp_path):
    first, files, _ = run()
    assert len(first) == ROWS
    assert files == ["colours.parquet", "leaks.json", "words.parquet"]
    (tmp_path / "tasks" / "colours").rename(tmp_path / "tasks" / "tints")
    rows, files, leaks = run()
    assert files == ["leaks.json", "tints.parquet", "words.parquet"]
    assert list(leaks["tasks"]) == ["tints", "words"]
    renamed = {"colours": "tints", "words": "words"}
    assert rows == [{**row, "eval_task": renamed[row["eval_task"]]} for row in first]
