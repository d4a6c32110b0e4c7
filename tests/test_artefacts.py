"""Shared folders: made once by whoever comes first, whole or not at all, and changed by nobody."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.artefacts import Artefacts, changed, copied, key, linked

ASKS = """
import os, signal, sys, time
from pathlib import Path
from tests.artefacts import Artefacts

shelf = Path(sys.argv[1])

def build(folder):
    (folder / "half").write_text(str(os.getpid()))
    if sys.argv[2] == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    while len(list(shelf.glob("asks-*"))) < 2:
        time.sleep(0.01)
    (folder / "whole").write_text(str(os.getpid()))

(shelf / f"asks-{os.getpid()}").touch()
folder = Artefacts(shelf)("it", build)
print((folder / "half").read_text(), (folder / "whole").read_text())
"""


@pytest.fixture
def asks(tmp_path):
    """Starts a process that asks for the folder `it`."""
    (tmp_path / "asks.py").write_text(ASKS)
    (tmp_path / "shelf").mkdir()  # who asks says so there first

    def start(how: str) -> subprocess.Popen:
        command = [sys.executable, tmp_path / "asks.py", tmp_path / "shelf", how]
        paths = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=paths)

    return start


@pytest.fixture
def made(tmp_path) -> Artefacts:
    return Artefacts(tmp_path / "shelf")


def write(folder):
    (folder / "run").mkdir()
    (folder / "run" / "a").write_text("a")
    (folder / "run" / "b").write_text("b")


def test_two_processes_that_ask_at_once_have_one_folder_made_once(asks):
    several = [asks("waits"), asks("waits")]
    said = [process.communicate(timeout=60)[0].split() for process in several]
    assert said[0] == said[1]
    (maker,) = set(said[0])
    assert maker in {str(process.pid) for process in several}


def test_a_making_that_was_killed_is_made_again_from_nothing(asks, tmp_path):
    assert asks("dies").wait(60) == -signal.SIGKILL
    (half,) = (tmp_path / "shelf").glob("it-*/half")
    process = asks("waits")
    assert process.communicate(timeout=60)[0].split() == [str(process.pid)] * 2
    assert half.read_text() == str(process.pid)


def test_of_other_sources_another_folder_is_made_and_few_are_kept(made, tmp_path):
    source = tmp_path / "source"
    folders = []
    for text in ("one", "two", "three"):
        source.write_text(text)
        folders.append(made("it", write, source))
        assert made("it", write, source) == folders[-1]
        time.sleep(0.01)  # a time of its own
    assert len(set(folders)) == 3
    assert [folder.exists() for folder in folders] == [False, True, True]
    other = made("it-too", write)  # of another name: none of the two goes
    assert all(folder.exists() for folder in (other, *folders[1:]))
    assert len(list((tmp_path / "shelf").glob("*.done"))) == 3


def test_a_key_is_of_names_and_bytes_in_folders_and_of_nothing_compiled(tmp_path):
    folder = tmp_path / "sources"
    folder.mkdir()
    keys = [key(tmp_path, folder)]
    (folder / "a.py").write_text("a = 1")
    keys.append(key(tmp_path, folder))
    (folder / "a.py").write_text("a = 2")
    keys.append(key(tmp_path, folder))
    (folder / "a.py").rename(folder / "b.py")
    keys.append(key(tmp_path, folder))
    keys.append(key(folder, folder))  # another shelf: runs store where they lie
    assert len(set(keys)) == 5
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "a.nbi").write_text("a kernel")
    assert key(tmp_path, folder) == keys[3]


@pytest.mark.parametrize("change", ["rewritten", "gone", "more"])
def test_a_file_that_a_test_changed_fails_the_run_by_name_and_is_made_again(change, made):
    folder = made("it", write)
    made.check()
    if change == "gone":
        (folder / "run" / "b").unlink()
    else:
        name = "b" if change == "rewritten" else "c"
        (folder / "run" / name).unlink(missing_ok=True)
        (folder / "run" / name).write_text("c")
    with pytest.raises(
        AssertionError, match=rf"{folder.name}.*run/{'c' if change == 'more' else 'b'}"
    ):
        made.check()
    assert made("it", write) == folder
    assert changed(folder) == []
    assert sorted(path.name for path in (folder / "run").iterdir()) == ["a", "b"]


def test_files_may_not_be_written_but_by_root(made):
    file = made("it", write) / "run" / "a"
    assert file.stat().st_mode & 0o222 == 0


def test_a_linked_copy_takes_no_room_and_is_written_by_rename(made, tmp_path):
    folder = made("it", write)
    to = linked(folder, tmp_path / "copy")
    assert (to / "run" / "a").samefile(folder / "run" / "a")
    (to / "new").write_text("new")
    (to / "new").replace(to / "run" / "a")
    (to / "run" / "b").unlink()
    made.check()


def test_a_copy_may_be_written_in_place(made, tmp_path):
    folder = made("it", write)
    with (copied(folder, tmp_path / "copy") / "run" / "a").open("r+") as file:
        file.write("x")
    made.check()
    assert (folder / "run" / "a").read_text() == "a"
