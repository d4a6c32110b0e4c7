"""The Ray that a run starts: who can reach it, and what its death, ours or a missing one leaves."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.chaos

RECIPE = """
stages:
  pool:    {{uses: ingest.datacomp, path: {pool}/metadata, shard_rows: 1}}
  caption: {{uses: annotate.caption, from: pool}}
"""
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
LISTENS = "0A"


@pytest.fixture
def command(generated, tmp_path) -> list[str]:
    (tmp_path / "it.yaml").write_text(RECIPE.format(pool=generated))
    run = ["run", str(tmp_path / "it.yaml"), "--out", str(tmp_path / "run"), "--workers", "2"]
    return [sys.executable, "-m", "clipmill.pipeline.cli", *run]


@contextmanager
def at_work(command: list[str]) -> Iterator["subprocess.Popen[str]"]:
    """The run on a Ray of its own, in the midst of its shards."""
    with subprocess.Popen(
        [*command, "--executor", "ray"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        try:
            next(line for line in process.stdout if re.match(r"caption: [1-9]\d* of", line))
            yield process
        finally:
            process.kill()


def children(pid: int) -> dict[int, str]:
    """The processes that a process has started, and those that they have: pid to command."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int(
                (entry / "stat").read_text().rpartition(")")[2].split()[1]
            )
        except OSError:  # it ended as we looked
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return {child: command_of(child) for child in found - {pid}}


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def one_of(processes: dict[int, str], word: str) -> int:
    return next(pid for pid, command in processes.items() if word in command.split(" ")[0])


def listened_at(pids: set[int]) -> set[str]:
    """The addresses at which they listen, as Linux writes them."""
    sockets = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets.add(os.readlink(link))
            except OSError:
                continue
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    return {
        row[1].partition(":")[0]
        for row in rows
        if row[3] == LISTENS and f"socket:[{row[9]}]" in sockets
    }


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_it_listens_on_loopback_and_wants_a_token_made_for_this_run(command):
    with at_work(command) as process:
        processes = children(process.pid)
        addresses = listened_at({process.pid, *processes})
        head = Path(f"/proc/{one_of(processes, 'gcs_server')}/environ").read_text().split("\0")
    assert addresses
    assert addresses <= LOOPBACK
    assert "RAY_AUTH_MODE=token" in head
    [token] = [line.partition("=")[2] for line in head if line.startswith("RAY_AUTH_TOKEN=")]
    assert len(token) == 64
    assert token != os.environ.get("RAY_AUTH_TOKEN")


@pytest.mark.drawn(one_in=3, cpu_s=20)
def test_a_run_on_it_prints_what_a_local_run_does_and_no_line_of_ray(command, tmp_path):
    other = [*command[:-3], str(tmp_path / "local"), *command[-2:]]
    local = subprocess.run(other, capture_output=True, text=True, check=True)
    there = subprocess.run([*command, "--executor", "ray"], capture_output=True, text=True)
    assert there.returncode == 0, there.stderr
    took = re.compile(r"^this run took .* s$", re.MULTILINE)
    assert len(took.findall(there.stdout)) == 1
    here = local.stdout.replace(str(tmp_path / "local"), str(tmp_path / "run"))
    assert took.sub("", there.stdout) == took.sub("", here)
    now_and_then = re.compile(r"\d of 2 stages done, ")  # on a busy machine
    lines = [line for line in there.stderr.splitlines() if not now_and_then.match(line)]
    assert {line.partition(":")[0] for line in lines} == {"pool", "caption"}


@pytest.mark.drawn(one_in=3, cpu_s=15)
@pytest.mark.parametrize("vital", ["gcs_server", "raylet"])
def test_its_death_ends_the_run_in_a_sentence_and_finished_shards_stay(vital, command, tmp_path):
    with at_work(command) as process:
        os.kill(one_of(children(process.pid), vital), signal.SIGKILL)
        killed_s = time.monotonic()
        said, _ = process.communicate(timeout=60)
        assert time.monotonic() - killed_s < 20
    assert process.returncode == 1
    assert f"{vital} of the local Ray has died\n  where: logs in /" in said
    assert not [line for line in said.splitlines() if line.startswith(("[", "(raylet)", "\x1b"))]
    assert "Traceback" not in said
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("run/stages/*/0?????.json")}
    assert len(made) > 120  # the pool's, and a caption's at least
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in made.items())


@pytest.mark.drawn(one_in=3, cpu_s=15)
def test_a_driver_that_is_told_to_stop_takes_its_workers_along(command):
    with at_work(command) as process:
        processes = children(process.pid)
        assert len([word for word in processes.values() if word.startswith("ray::")]) >= 2
        process.terminate()
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 143
    assert said.endswith("stopped; run the same command again to go on\n")
    deadline = time.monotonic() + 10
    while not all(map(is_gone, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [processes[pid] for pid in processes if not is_gone(pid)] == []


@pytest.mark.parametrize("listens", [False, True], ids=["nobody", "somebody who is no Ray"])
def test_an_address_where_no_ray_answers_is_refused_in_a_sentence(listens, command, tmp_path):
    with socket.socket() as somebody:
        somebody.bind(("127.0.0.1", 0))
        if listens:
            somebody.listen()
        address = f"127.0.0.1:{somebody.getsockname()[1]}"
        ended = subprocess.run(
            [*command, "--executor", "ray", "--address", address],
            capture_output=True,
            text=True,
            timeout=20,
        )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith("clipmill: no Ray answers: ")
    assert f"where: --address {address}\n  do:    give HOST:6379" in ended.stderr
    assert len(ended.stderr.splitlines()) == 3
    assert not (tmp_path / "run").exists()
