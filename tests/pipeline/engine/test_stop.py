"""A run that is told to stop, or killed: its workers end with it, and the next run goes on."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from clipmill.metadata.scratch import scratch_folder
from clipmill.metadata.storage import Storage
from tests.engine_stages.harness import environment, meaning

GONE_S = 5.0
STAGES = """
  square: {uses: toy.power, from: numbers}
  stuck:  {uses: toy.stuck, from: numbers, cause: %s, launch: %s}
"""


@pytest.fixture
def running(engine, tmp_path):
    """Starts a run; gives it once a worker of it is stuck in native code."""
    started = []

    def start(launch: bool) -> "subprocess.Popen[str]":
        (engine.folder / "cause").touch()
        engine.plan(STAGES % (engine.folder / "cause", str(launch).lower()))
        command = [
            sys.executable,
            "-m",
            "clipmill.pipeline.cli",
            "run",
            str(engine.folder / "recipe.yaml"),
        ]
        process = subprocess.Popen(
            [*command, "--workers", "2", "--out", str(engine.folder / "run")],
            env={**environment(engine.folder / "faults", "any:0"), "TMPDIR": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        while not list(engine.folder.glob("cause-*")):
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.01)
        return process

    yield start
    for process in started:
        for pid in members(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.communicate()


def members(session: int) -> list[int]:
    """The live processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, of = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has ended
            continue
        if int(of) == session and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def outlived(session: int) -> list[int]:
    """Those of a session that are still there after a while."""
    limit = time.monotonic() + GONE_S
    while members(session) and time.monotonic() < limit:
        time.sleep(0.02)
    return members(session)


@pytest.mark.drawn("launch", cpu_s=3)
@pytest.mark.parametrize(
    ("launch", "signals", "codes"),
    [
        (False, [signal.SIGTERM], {143}),
        (True, [signal.SIGKILL], {-signal.SIGKILL}),
        (True, [signal.SIGTERM], {143}),
        (False, [signal.SIGKILL], {-signal.SIGKILL}),
        (False, [signal.SIGINT], {130}),
        (False, [signal.SIGINT] * 2, {130, -signal.SIGINT}),
        (True, [signal.SIGINT, signal.SIGTERM], {130, 143, -signal.SIGINT, -signal.SIGTERM}),
    ],
)
def test_all_processes_of_a_run_end_with_it_and_the_next_goes_on(
    launch, signals, codes, running, engine, clipmill, tmp_path, monkeypatch
):
    process = running(launch)
    began = time.monotonic()
    for number in signals:
        if number == signal.SIGINT:  # of a terminal: all hear it
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
    assert process.wait(GONE_S) in codes
    assert not outlived(process.pid)
    assert time.monotonic() - began < GONE_S
    said = process.stdout.read()
    assert "Traceback" not in said
    if process.returncode > 0:
        assert "run the same command again" in said
        assert not (engine.folder / "run" / "lock.json").exists()
    scratch_folder()  # ours is made elsewhere
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (engine.folder / "cause").unlink()
    run = ["run", engine.folder / "recipe.yaml", "--workers", 0, "--out"]
    assert clipmill(*run, engine.folder / "run").code == 0
    assert not list(tmp_path.glob("clipmill-scratch-*"))
    assert clipmill(*run, engine.folder / "other").code == 0
    assert meaning(Storage(str(engine.folder / "run"))) == meaning(
        Storage(str(engine.folder / "other"))
    )
