"""Whatever can run runs: stages here end only once all of them have begun."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing

import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.executors.local import LocalExecutor
from tests.engine_stages.harness import environment, meaning, write_pool
from tests.pipeline.engine.test_changed_files import data_files, flip
from tests.ray_head import ray_head as ray_head
from tests.ray_head import ray_heads as ray_heads

MEETING = """
  few:  {uses: toy.numbers, path: %(pool)s}
  one:  {uses: toy.meet_all, from: few, folder: %(place)s, wanted: 3, fails: %(fails)s}
  two:  {uses: toy.meet_all, from: few, folder: %(place)s, wanted: 3}
  rows: {uses: toy.meet_rows, from: few, folder: %(place)s, wanted: 3}
  after: {uses: toy.power, from: rows, read: {number: rows.same}}
"""

ROOTS = """
  few:  {uses: toy.numbers, path: %(pool)s}
  more: {uses: toy.numbers, path: %(pool)s, shard_rows: 5}
  rows: {uses: toy.meet_rows, from: few, folder: %(place)s}
  same: {uses: toy.meet_rows, from: more, folder: %(place)s}
"""
LATE = """
  few:    {uses: toy.numbers, path: %(pool)s}
  rows:   {uses: toy.meet_rows, from: few, folder: %(place)s}
  shared: {uses: toy.shared, from: few}
  late:   {uses: toy.meet_rows, from: shared, read: {number: shared.shared}, folder: %(place)s}
"""


@pytest.fixture
def place(tmp_path):
    """Where the stages meet, and a pool of one shard."""
    folder = tmp_path / "place"
    folder.mkdir()
    return {"place": folder, "pool": write_pool(tmp_path / "few", [5], start=100), "fails": "false"}


@pytest.fixture(scope="module")
def three():
    """Three workers, for the runs of this module."""
    with closing(LocalExecutor(3, with_main=False)) as executor:
        yield executor


@pytest.mark.slow("three workers begin")
def test_dataset_stages_run_beside_each_other_and_a_wave_of_row_stages(engine, place, three):
    ran = engine.run(MEETING % place, executor=three)
    assert ran.complete
    assert ran.column("rows", "same") == list(range(100, 105))


def test_a_dataset_stage_that_fails_leaves_the_others_to_end(engine, place, three):
    ran = engine.run(MEETING % {**place, "fails": "true"}, executor=three)
    assert "it fails" in ran.error("one")
    assert ran.outcome.stopped.keys() == {"one"}
    done = [name for name, stage in ran.outcome.state.stages.items() if stage.complete]
    assert done == ["numbers", "few", "two", "rows", "after"]
    assert engine.run(MEETING % place, executor=three).complete


def test_waves_of_several_roots_run_side_by_side(engine, place, three):
    assert engine.run(ROOTS % place, executor=three).complete


def test_a_row_stage_that_waits_for_a_dataset_stage_does_not_wait_for_the_wave_beside_it(
    engine, place, three
):
    """`rows` ends only once `late` has begun."""
    assert engine.run(LATE % place, executor=three).complete


@pytest.mark.chaos  # seconds
def test_damage_that_several_stages_meet_at_once_is_mended_once(engine, capfd, three):
    assert engine.run("  square: {uses: toy.power, from: numbers}\n").complete
    flip(data_files(engine.folder / "run", "numbers")[0])
    stages = "  square: {uses: toy.power, from: numbers}\n" + "".join(
        f"  {name}: {{uses: toy.centre, from: numbers}}\n" for name in ("one", "two", "three")
    )
    assert engine.run(stages, executor=three).complete
    assert capfd.readouterr().err.count("is damaged, and made again") == 1
    assert engine.run(stages, out="calm").complete
    mended, calm = (meaning(Storage(str(engine.folder / run))) for run in ("run", "calm"))
    assert {**mended, "recipes": None} == {**calm, "recipes": None}


@pytest.mark.drawn(cpu_s=8)
@pytest.mark.parametrize("how", ["local", "ray"])
def test_killed_with_two_dataset_stages_running_the_next_run_stores_the_same(
    how, engine, place, clipmill, request
):
    engine.plan(MEETING.replace("wanted: 3", "wanted: 4") % place)
    run = ["run", engine.folder / "recipe.yaml", "--workers", 3, "--out"]
    there, env = [*run, engine.folder / "run"], environment(engine.folder / "faults", "any:0")
    if how == "ray":
        head = request.getfixturevalue("ray_head")
        there, env = [*there, *head.arguments], env | head.environment
    command = [sys.executable, "-m", "clipmill.pipeline.cli", *map(str, there)]
    with subprocess.Popen(command, env=env, start_new_session=True) as process:
        limit = time.monotonic() + 60
        while {"one", "two"} - {path.name for path in place["place"].iterdir()}:
            assert process.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    (place["place"] / "fourth").touch()
    assert subprocess.run(command, env=env).returncode == 0
    assert clipmill(*run, engine.folder / "calm").code == 0
    killed, calm = (meaning(Storage(str(engine.folder / out))) for out in ("run", "calm"))
    assert killed == calm


def test_with_no_workers_stages_run_one_after_another(engine, place):
    alone = (MEETING % place).replace("wanted: 3", "wanted: 1")
    assert engine.run(alone, workers=0).complete
