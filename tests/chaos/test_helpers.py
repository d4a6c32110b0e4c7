"""Deaths of workers and drivers: no helper, no child of one is left, and a run goes on."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest

from tests.engine_stages.harness import environment, run_arguments, write_pool
from tests.family import left_after, living

pytestmark = pytest.mark.chaos

RECIPE = """
stages:
  numbers: {{uses: toy.numbers, path: {pool}, shard_rows: 12}}
  helped: {{uses: toy.helped, from: numbers, log: {log}, gate: {gate}, at: 13}}
"""
ENDS_S = 10  # of the guard's five, on a busy machine


@pytest.fixture
def log(tmp_path) -> Path:
    (tmp_path / "gate").touch()
    folder = tmp_path / "log"
    folder.mkdir()
    return folder


@contextlib.contextmanager
def run_of(
    tmp_path: Path, log: Path, *more: str, env: Mapping[str, str] | None = None
) -> Iterator["subprocess.Popen[str]"]:
    """A run that waits at the gate, its worker's helper at work."""
    pool = write_pool(tmp_path / "pool", [30])
    recipe = tmp_path / "it.yaml"
    recipe.write_text(RECIPE.format(pool=pool, log=log, gate=tmp_path / "gate"))
    arguments = run_arguments(recipe, str(tmp_path / "run"), 1, *more)
    with subprocess.Popen(
        [sys.executable, "-m", "clipmill.pipeline.cli", *arguments],
        env={**environment(tmp_path / "faults", "any:0"), **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def helped(log: Path, workers: int = 1) -> dict[int, list[int]]:
    """By each worker, the processes of its helper, once so many workers have one."""
    limit = time.monotonic() + 60
    while len(found := [file for file in log.iterdir() if file.read_text()]) < workers:
        assert time.monotonic() < limit
        time.sleep(0.02)
    return {int(file.name): list(map(int, file.read_text().split())) for file in found}


@pytest.fixture(params=["local", "ray"])
def run_there(request, tmp_path, log):
    """Such a run on this machine's executor, and on Ray."""
    if request.param == "local":
        return partial(run_of, tmp_path, log)
    head = request.getfixturevalue("ray_head")
    return partial(run_of, tmp_path, log, *head.arguments, env=head.environment)


def test_a_killed_worker_takes_its_helper_along_and_the_next_one_has_its_own(
    run_there, tmp_path, log
):
    with run_there() as process:
        [(worker, pids)] = helped(log).items()
        assert living(pids) == pids
        os.kill(worker, signal.SIGKILL)
        assert not left_after(pids, ENDS_S)
        both = helped(log, workers=2)
        (tmp_path / "gate").unlink()
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert not left_after([pid for pids in both.values() for pid in pids], ENDS_S)


def test_a_killed_driver_leaves_no_helper(run_there, log):
    with run_there() as process:
        [pids] = helped(log).values()
        process.kill()
        assert not left_after(pids, ENDS_S)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_leaves_no_helper(number, tmp_path, log):
    with run_of(tmp_path, log) as process:
        [pids] = helped(log).values()
        process.send_signal(number)
        time.sleep(0.5)
        (tmp_path / "gate").unlink()  # what is under way may be finished first
        process.communicate(timeout=60)
    assert not left_after(pids, ENDS_S)


def test_without_workers_a_killed_run_leaves_no_helper(tmp_path, log):
    with run_of(tmp_path, log, "--workers", "0") as process:
        [pids] = helped(log).values()
        process.kill()
        assert not left_after(pids, ENDS_S)


def test_a_dead_helper_is_started_again_and_the_run_ends_well(tmp_path, log):
    with run_of(tmp_path, log) as process:
        [pids] = helped(log).values()
        os.kill(pids[0], signal.SIGKILL)
        while len(again := helped(log).popitem()[1]) == len(pids):
            assert process.poll() is None
        assert not living(pids)
        (tmp_path / "gate").unlink()
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert not left_after(again, ENDS_S)
