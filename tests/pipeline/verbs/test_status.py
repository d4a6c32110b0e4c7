"""`clipmill status`: true in mid-run, after a kill, of a run that failed, of one that is done."""

import fcntl
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.run_folder.live import read_live
from tests.engine_stages.harness import environment

ROOT = Path(__file__).parents[3]
SOON_S = 60.0  # against hanging
STAGES = """
  square: {{uses: toy.power, from: numbers}}
  held:   {{uses: toy.held, from: numbers, gate: {gate}, at: 18}}
  train:  {{uses: toy.steps, from: numbers, gate: {gate}}}
  after:  {{uses: toy.shared, from: held, read: {{number: held.held}}}}
"""


@pytest.fixture
def gate(engine) -> Path:
    file = engine.folder / "gate"
    file.touch()
    return file


@pytest.fixture
def start(engine, gate):
    """Starts a run in processes of its own, in a folder or at a URI."""
    started = []

    def start(out: str = str(engine.folder / "run")) -> "subprocess.Popen[str]":
        engine.plan(STAGES.format(gate=gate))
        recipe = str(engine.folder / "recipe.yaml")
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "clipmill.pipeline.cli",
                "run",
                recipe,
                "--workers",
                "3",
                "--out",
                out,
            ],
            cwd=ROOT,
            env=environment(engine.folder / "faults", "any:0"),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def status(clipmill, engine):
    def status(run: str = str(engine.folder / "run")) -> dict:
        said = clipmill("status", "--run", run, "--json")
        assert said.code == 0, said.err
        return said.json | {"by_name": {stage["name"]: stage for stage in said.json["stages"]}}

    return status


def until(holds: Callable[[], object]) -> None:
    limit = time.monotonic() + SOON_S
    while not holds():
        assert time.monotonic() < limit, "it never held"
        time.sleep(0.1)


def both_are_held(run: str) -> bool:
    """Whether the row stage is in the midst of a shard and the training of its steps, as told."""
    live = read_live(Storage(run))
    if live is None or live.phase != "running":
        return False
    held, train = live.stages["held"], live.stages["train"]
    at = [piece.done for piece in held.pieces.values() if piece.all > 1]
    return held.shards == 3 and at == [4] and any(p.done == 4 for p in train.pieces.values())


@pytest.mark.chaos  # seconds
def test_in_mid_run_it_says_what_runs_how_far_and_what_waits(engine, start, status, clipmill, gate):
    run = str(engine.folder / "run")
    process = start()
    until(lambda: (engine.folder / "run" / "live.json").exists() and both_are_held(run))
    found = status()
    assert (found["phase"], found["pid"]) == ("running", process.pid)
    assert {name: stage["status"] for name, stage in found["by_name"].items()} == {
        "numbers": "done",
        "square": "running",
        "held": "running",
        "train": "running",
        "after": "waiting",
    }
    held, train = found["by_name"]["held"], found["by_name"]["train"]
    assert (held["shards"], held["total"], held["rows"]) == (3, 4, 23)
    assert [piece["done"] for piece in held["in_hand"]] == [4], "rows of the shard in hand"
    assert train["call"] == "training"
    (piece,) = train["in_hand"]
    assert (piece["done"], piece["all"], piece["what"]) == (4, 8, "steps")
    assert piece["values"] == {"loss": 0.0}
    page = clipmill("status", "--run", run).out
    assert f"running: process {process.pid} on " in page
    assert re.search("held +3 of 4 shards, .*27 rows", page)
    assert re.search("train +training: 4 of 8 steps, .*loss 0", page)
    assert re.search("after +waits for held", page)
    assert re.search("1 of 5 stages done, .* so far", page)
    page = clipmill("status", "--run", run, "--resources").out
    rows = re.findall(rf"^{socket.gethostname()} +1 +1 +0  (square|train|held)", page, re.M)
    assert {"held", "train"} <= {*rows}
    gate.unlink()
    assert process.wait(SOON_S) == 0
    assert "no worker lives now" in clipmill("status", "--run", run, "--resources").out
    ended = status()
    assert ended["phase"] == "complete"
    assert {stage["status"] for stage in ended["stages"]} == {"done"}
    assert "complete" in clipmill("status", "--run", run).out


@pytest.mark.chaos  # seconds
def test_after_a_kill_it_says_that_nobody_works_there_and_how_far_it_came(
    engine, start, status, clipmill, gate
):
    run = str(engine.folder / "run")
    process = start()
    until(lambda: (engine.folder / "run" / "live.json").exists() and both_are_held(run))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    found = status()
    assert found["phase"] == "gone"
    assert {name: stage["status"] for name, stage in found["by_name"].items()} == {
        "numbers": "done",
        "square": "done",
        "held": "stopped",
        "train": "stopped",
        "after": "waiting",
    }
    assert found["by_name"]["held"]["shards"] == 3
    page = clipmill("status", "--run", run).out
    assert "not complete: nobody works here" in page
    assert f"process {process.pid} on " in page
    assert re.search("held +stopped at 3 of 4 shards", page)
    assert re.search("train +stopped at training: 4 of 8 steps", page)
    assert re.search("after +not begun", page)
    gate.unlink()
    assert start().wait(SOON_S) == 0
    assert status()["phase"] == "complete"


def test_the_cause_of_a_failed_stage_is_told_until_the_stage_is_done(engine, status, clipmill):
    script = engine.folder / "script.json"
    script.write_text(json.dumps({"answer": "short"}))
    stages = f"  copy: {{uses: toy.moody, from: numbers, script: {script}}}\n"
    after = "  shared: {uses: toy.shared, from: copy, read: {number: copy.copy}}\n"
    assert not engine.run(stages + after).complete
    found = status()
    assert found["phase"] == "failed"
    copy, shared = found["by_name"]["copy"], found["by_name"]["shared"]
    assert (copy["status"], shared["status"]) == ("failed", "waiting")
    assert "7 rows came back for 8" in copy["failures"][0]["found"]
    page = clipmill("status", "--run", engine.folder / "run").out
    assert "the last run ended" in page
    assert re.search("copy +failed: 7 rows came back for 8", page)
    assert "  where: stage 'copy' (toy.moody), shard 0\n  do:    a row stage keeps its rows" in page
    assert engine.run(stages + after, until="numbers").complete, "which does not touch it"
    script.write_text("{}")
    assert engine.run(stages + after).complete
    assert [stage["failures"] for stage in status()["stages"]] == [[]] * 3


def test_a_failed_shard_is_told_with_its_cause(engine, status):
    script = engine.folder / "script.json"
    script.write_text(json.dumps({"raise": [13]}))
    stages = f"  copy: {{uses: toy.moody, from: numbers, script: {script}}}\n"
    assert not engine.run(stages).complete
    copy = status()["by_name"]["copy"]
    assert (copy["status"], copy["shards"], copy["total"]) == ("failed", 3, 4)
    (failure,) = copy["failures"]
    assert (failure["shard"], "in a bad mood" in failure["found"]) == (1, True)


@pytest.mark.chaos  # seconds
def test_it_watches_until_the_run_ends(engine, start, gate):
    process = start()
    until((engine.folder / "run" / "live.json").exists)
    watch = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "clipmill.pipeline.cli",
            "status",
            "--watch",
            "--run",
            engine.folder / "run",
        ],
        cwd=ROOT,
        env=environment(engine.folder / "faults", "any:0"),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watch.stdout
    first = watch.stdout.readline()
    gate.unlink()
    said = first + watch.communicate(timeout=SOON_S)[0]
    assert (watch.returncode, process.wait(SOON_S)) == (0, 0)
    assert said.count("running: process") >= 1
    assert said.rstrip().splitlines()[-1].startswith("5 of 5 stages done")


def test_of_a_folder_that_no_run_told_of_it_says_what_lies_there(engine, status):
    assert engine.run("  square: {uses: toy.power, from: numbers}\n").complete
    (engine.folder / "run" / "live.json").write_text("torn")
    found = status()
    assert (found["phase"], found["by_name"]["square"]["status"]) == ("complete", "done")


def test_of_a_working_run_it_asks_for_two_objects(engine, start, status, monkeypatch):
    start()
    until((engine.folder / "run" / "live.json").exists)
    asked = []
    read = Storage.read
    monkeypatch.setattr(Storage, "read", lambda self, name: asked.append(name) or read(self, name))
    assert status()["phase"] == "running"
    assert asked == ["lock.json", "live.json"]


@pytest.mark.chaos  # seconds
def test_a_short_terminal_shows_the_working_stages_and_the_end(engine, gate):
    engine.plan(STAGES.format(gate=gate))
    recipe, run = str(engine.folder / "recipe.yaml"), str(engine.folder / "run")
    ours, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 5, 120, 0, 0))
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "clipmill.pipeline.cli",
            "run",
            recipe,
            "--workers",
            "3",
            "--out",
            run,
        ],
        cwd=ROOT,
        env=environment(engine.folder / "faults", "any:0") | {"TERM": "xterm", "LINES": "5"},
        stdin=terminal,
        stdout=subprocess.DEVNULL,
        stderr=terminal,
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 65536)
        except OSError:  # its end
            break
        if b"training: 4 of 8 steps" in shown and b"held" in shown:
            gate.unlink(missing_ok=True)
    os.close(ours)
    assert process.wait(SOON_S) == 0
    frames = re.sub(r"\x1b\[(2K|[\d;]*m)", "", shown.decode()).split("\x1b[1A")
    assert any("> held" in frame for frame in frames)
    assert "..." not in shown.decode()
    assert re.search(r"\(\d more stages? not shown\)", shown.decode())
    assert "5 of 5 stages done, the last run took" in frames[-1]


def test_a_recorded_file_that_is_damaged_is_told_as_the_failure_of_its_stage(engine, status):
    script = engine.folder / "script.json"
    script.write_text("{}")
    copy = f"  copy: {{uses: toy.answered, from: numbers, script: {script}}}\n"
    assert engine.run(copy).complete
    (data, *_) = sorted((engine.folder / "run" / "stages").glob("copy-*/000001-*.parquet"))
    data.write_bytes(bytes(byte ^ 1 for byte in data.read_bytes()))
    after = "  square: {uses: toy.power, from: copy, read: {number: copy.copy}}\n"
    assert not engine.run(copy + after).complete
    found = status()["by_name"]["copy"]
    assert (found["status"], "--repair" in found["failures"][0]["do"]) == ("failed", True)
