"""What a run was made with and how long it took, stored as it ends and read back."""

import subprocess

import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.run_folder.sessions import commit, machine, session, sessions


def test_each_run_that_ended_is_told_in_order(tmp_path):
    run = Storage(str(tmp_path))
    assert sessions(run) == ()
    for recipe in ("first", "second"):
        with session(run, recipe):
            pass
    first, second = sessions(run)
    assert (first.recipe, second.recipe) == ("first", "second")
    assert 0 <= first.seconds < 5
    assert first.began.endswith(" UTC")
    assert first.clipmill == "0.1.0"
    assert first.packages["numpy"]
    assert first.machine == machine()


def test_a_run_that_ends_by_an_error_leaves_none_and_a_damaged_one_is_passed_over(tmp_path):
    run = Storage(str(tmp_path))
    with pytest.raises(ZeroDivisionError), session(run, "it"):
        1 / 0  # noqa: B018
    assert sessions(run) == ()
    with session(run, "it"):
        pass
    (file,) = (tmp_path / "sessions").iterdir()
    file.write_text(file.read_text().replace('"seconds"', '"minutes"'))
    assert sessions(run) == ()


def test_a_commit_is_that_of_a_checkout_and_marked_where_files_differ(tmp_path):
    assert commit(tmp_path) is None
    (tmp_path / "a.txt").write_text("a")
    author = ("-c", "user.name=a", "-c", "user.email=a@b.test")
    for arguments in (("init", "-q"), ("add", "."), (*author, "commit", "-qm", "a")):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    clean = commit(tmp_path)
    assert len(clean) == 12
    (tmp_path / "a.txt").write_text("b")
    assert commit(tmp_path) == f"{clean}+"


def test_a_folder_that_cannot_be_written_stops_no_run(tmp_path):
    (tmp_path / "sessions").write_text("in the way")
    with session(Storage(str(tmp_path)), "it"):
        pass
