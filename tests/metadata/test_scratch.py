"""A process's scratch folder: there while it lives, gone after, however it ended."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from clipmill.metadata import scratch
from clipmill.metadata.storage import Storage

HOLDER = """
import os, sys
from clipmill.metadata.scratch import scratch_folder
(scratch_folder() / "on-its-way").touch()
if not os.fork():
    sys.exit()  # a child that ends as any program does
os.wait()
print(scratch_folder(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process with a scratch folder, and that folder."""
    started = []

    def start() -> "tuple[subprocess.Popen[str], Path]":
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER],
            env={**os.environ, "TMPDIR": str(tmp_path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process, Path(process.stdout.readline().strip())

    yield start
    for process in started:
        process.communicate()


def test_a_folder_goes_with_its_process_and_not_with_a_fork_of_it(holder, tmp_path):
    process, folder = holder()
    assert (folder / "on-its-way").exists()
    assert folder.parent == tmp_path
    process.communicate()
    assert not folder.exists()


def test_whoever_makes_a_folder_removes_those_of_killed_processes_and_no_others(holder, tmp_path):
    (tmp_path / "clipmill-else").mkdir()
    (live, its), (dead, left) = holder(), holder()
    dead.kill()
    dead.wait()
    assert left.exists()
    holder()
    assert not left.exists()
    assert its.exists()
    assert (tmp_path / "clipmill-else").exists()
    assert live.poll() is None


def test_a_folder_that_a_sweep_took_while_it_was_made_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    make, swept = tempfile.mkdtemp, []

    def mkdtemp(prefix: str) -> str:
        path = make(prefix=prefix)
        if len(swept) < 2:
            swept.append(path)
            scratch.sweep_scratch()
        return path

    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    made = scratch._own_folder.__wrapped__(os.getpid())
    assert len(swept) == 2
    scratch.sweep_scratch()
    assert list(tmp_path.iterdir()) == [made]


def test_a_folder_that_a_cleaner_took_is_made_again():
    first = scratch.scratch_folder()
    assert first == scratch.scratch_folder()
    shutil.rmtree(first)
    again = scratch.scratch_folder()
    assert again != first
    assert again.is_dir()


def test_a_shared_folder_of_somebody_elses_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    planted = tmp_path / f"{scratch.PREFIX}arrays"
    planted.mkdir(mode=0o777)
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    assert scratch.shared_scratch("arrays") is None
    monkeypatch.setattr(os, "geteuid", lambda: me)
    assert scratch.shared_scratch("arrays") == planted
    scratch.leave_shared(())


def test_what_goes_to_an_object_store_is_written_there_first():
    with Storage("mock://bucket/run").scratch("it") as path:
        assert path.parent == scratch.scratch_folder()
        path.write_bytes(b"1")
    assert not path.exists()
