"""dedup.semantic and dedup.against in the engine: killed in any call, they go on from there."""

import json
import shutil

import cv2
import numpy as np
import pytest

from metadata.passes import read_stage
from metadata.storage import Storage
from pipeline.engine.run import run_plan
from pipeline.executors.local import LocalExecutor
from pipeline.planning.plan import make_plan
from pipeline.planning.recipe import Recipe
from tests.stages.killed import KilledError, Watcher
from tests.stages.task_folders import write_tasks

ROWS = 90


class OneStage(Watcher):
    """Looks at one stage only."""

    def __init__(self, stage: str, dies_after: int | None = None) -> None:
        super().__init__(dies_after)
        self.stage_name = stage

    def unit(self, name, call, done, total):
        if name == self.stage_name:
            super().unit(name, call, done, total)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Pictures in a few colours and patterns, and the tasks to keep out."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(ROWS):
        image = np.full((16, 16, 3), rng.integers(0, 256, 3) // 64 * 64, np.uint8)
        image[:: rng.integers(1, 5)] //= 2
        cv2.imwrite(str(folder / "images" / f"{number:03d}.png"), image)
    write_tasks(folder / "tasks")
    return folder


@pytest.fixture(scope="module")
def run(pool, tmp_path_factory):
    """Runs one of the stages in a copy of a folder where the rest is done."""
    stages = {
        "pool": {"uses": "ingest.image_folder", "path": str(pool / "images"), "shard_rows": 40},
        "hash": {"uses": "annotate.phash", "from": "pool"},
        "emb": {"uses": "embed.clip", "from": "pool", "model": "reference"},
        "near": {"uses": "cluster.kmeans", "from": "emb", "clusters": 5, "rounds": 3},
    }
    tested = {
        "like": {"uses": "dedup.semantic", "from": "near"},
        "leak": {"uses": "dedup.against", "from": "hash", "tasks": str(pool / "tasks")},
    }
    begun = tmp_path_factory.mktemp("begun") / "run"

    def go(given, folder, watcher):
        plan = make_plan(Recipe(name="it", path="it.yaml", seed=0, stages=given))
        outcome = run_plan(plan, Storage(str(folder)), LocalExecutor(0), watcher)
        for error in filter(None, outcome.stopped.values()):
            raise error
        return outcome.state

    go(stages, begun, Watcher())

    def run(name, folder, watcher):
        if not folder.exists():
            shutil.copytree(begun, folder)
        state = go({**stages, name: tested[name]}, folder, watcher).stages[name]
        names = ["uid", *(column.name for column in state.planned.stage.writes), "reason"]
        rows = [
            row
            for shard in sorted(state.shards)
            for table in read_stage(state.folder, state.shards[shard], names, ROWS)
            for row in table.to_pylist()
        ]
        files = sorted(entry.name for entry in state.folder.entries("out"))
        return rows, files, [json.loads(state.folder.read("out/leaks.json"))] if files else []

    return run


@pytest.mark.parametrize("name", ["like", "leak"])
def test_killed_after_the_first_unit_of_any_call_the_rest_is_done_and_nothing_twice(
    name, run, tmp_path
):
    whole = OneStage(name)
    expected = run(name, tmp_path / "whole", whole)
    assert len(expected[0]) == ROWS
    inside_a_call = [
        n for n in range(1, len(whole.calls)) if whole.calls[n - 2] != whole.calls[n - 1]
    ]
    assert len(inside_a_call) > 2
    for number in inside_a_call:
        folder, killed, again = tmp_path / str(number), OneStage(name, number), OneStage(name)
        with pytest.raises(KilledError):
            run(name, folder, killed)
        assert run(name, folder, again) == expected
        assert killed.calls + again.calls == whole.calls, f"killed after unit {number}"


def test_where_tasks_change_rows_are_compared_again(run, pool, tmp_path):
    first, files, _ = run("leak", tmp_path / "run", OneStage("leak"))
    assert files == ["colours.parquet", "leaks.json", "words.parquet"]
    (pool / "tasks" / "colours").rename(pool / "tasks" / "tints")
    try:
        rows, files, (leaks,) = run("leak", tmp_path / "run", OneStage("leak"))
    finally:
        (pool / "tasks" / "tints").rename(pool / "tasks" / "colours")
    assert files == ["leaks.json", "tints.parquet", "words.parquet"]
    assert list(leaks["tasks"]) == ["tints", "words"]
    renamed = {"colours": "tints", "words": "words"}
    assert rows == [{**row, "eval_task": renamed[row["eval_task"]]} for row in first]
