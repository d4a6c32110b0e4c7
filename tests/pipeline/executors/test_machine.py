"""What a machine has: limits of containers, visible GPUs."""

import os
import signal
import subprocess
import sys

import pytest

from clipmill.pipeline.executors import machine

GB = 2**30


@pytest.mark.parametrize(
    ("visible", "seen"),
    [("", ()), ("-1", ()), ("0", ("0",)), ("2, 3", ("2", "3")), ("1,-1,0", ("1",))],
)
def test_gpus_are_those_that_cuda_would_see(visible, seen, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.gpus() == seen


def test_without_the_variable_gpus_are_those_of_the_driver(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(machine, "DRIVER_GPUS", tmp_path)
    assert machine.gpus() == ()
    for address in ("0000:04:00.0", "0000:05:00.0"):
        (tmp_path / address).mkdir()
    assert machine.gpus() == ("0", "1")


@pytest.mark.parametrize(
    ("line", "file", "text", "limit_gb"),
    [
        ("0::/job/step", "job/memory.max", str(GB // 2), 0.5),
        ("0::/job", "memory.max", str(GB // 4), 0.25),
        ("4:memory:/job", "memory/job/memory.limit_in_bytes", str(GB // 2), 0.5),
        ("0::/job", "job/memory.max", "max", None),
        ("3:cpu:/job", "cpu/job/memory.max", "1", None),
    ],
)
def test_memory_is_what_the_container_may_have(line, file, text, limit_gb, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "OWN_CGROUPS", tmp_path / "own")
    (tmp_path / "own").write_text(f"{line}\n")
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    whole_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB
    assert machine.memory_gb() == (limit_gb or whole_gb)


@pytest.mark.parametrize(
    ("line", "file", "text"),
    [
        ("0::/job", "job/memory.events", "low 0\noom 9\noom_kill 3\n"),
        ("4:memory:/job", "memory/job/memory.oom_control", "under_oom 0\noom_kill 3\n"),
        ("0::/job", "vmstat", "pgfault 9\noom_kill 3\n"),
        ("3:cpu:/job", "vmstat", "pgfault 9\n"),
        ("3:cpu:/job", "cpu/job/memory.events", "oom_kill 3\n"),
    ],
    ids=["cgroup 2", "cgroup 1", "machine", "old kernel", "unknown"],
)
def test_the_kernels_kills_are_counted_where_it_counts_them(
    line, file, text, tmp_path, monkeypatch, request
):
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(machine, "KERNEL", tmp_path / "vmstat")
    (tmp_path / "own").write_text(f"{line}\n")
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    is_known = request.node.callspec.id not in ("old kernel", "unknown")
    assert machine.oom_kills() == (3 if is_known else None)


@pytest.mark.parametrize("first", ["", "here"])
def test_workers_import_nothing_from_the_working_folder_that_python_puts_in_front(
    first, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    front = str(tmp_path) if first else ""
    monkeypatch.setattr(sys, "path", [front, "/opt/one", "/opt/two"])
    assert machine.import_path() == ["/opt/one", "/opt/two"]
    monkeypatch.setattr(sys, "path", ["/opt/one", front])  # somebody named it
    assert machine.import_path() == ["/opt/one", front]


def test_memory_that_no_file_holds_is_counted_and_a_process_that_ended_has_none():
    program = (  # a process of its own: in this one memory that was freed may be taken again
        "import os\nfrom clipmill.pipeline.executors.machine import resident_bytes\n"
        "before = resident_bytes(os.getpid())\nheld = b'x' * 30_000_000\n"
        "print(resident_bytes(os.getpid()) - before)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert 25e6 < int(said.stdout) < 60e6
    assert machine.resident_bytes(2**22 + 1) == 0  # above the highest number of a process
    assert machine.family(2**22 + 1) == [2**22 + 1]


FORKS = r"""
import os, sys, time
held = b"x" * 60_000_000
os.fork() or os.fork() or os.fork()
os.write(1, b"%d\n" % os.getpid())
time.sleep(60)
"""


def test_a_family_is_found_whole_and_pages_that_its_members_share_count_once():
    with subprocess.Popen([sys.executable, "-c", FORKS], stdout=subprocess.PIPE) as first:
        said = {int(first.stdout.readline()) for _ in range(4)}
        found = machine.family(first.pid)
        taken = [sum(machine.resident_bytes(pid, once) for pid in found) for once in (False, True)]
        named = machine.program(first.pid)
        for pid in found:
            os.kill(pid, signal.SIGKILL)
    assert set(found) == said
    assert taken[0] > 230e6
    assert 60e6 < taken[1] < 110e6
    assert named.endswith(f"(process {first.pid})")
