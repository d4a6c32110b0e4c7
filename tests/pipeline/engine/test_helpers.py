"""Helpers: healthy before use, ended with their children; deaths of workers are tested in chaos."""

import gc
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from clipmill.pipeline.engine import guard
from clipmill.pipeline.engine.helpers import HelperProcess, cannot_load
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.executors.local import LocalExecutor
from tests.family import family, left_after, living, members

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def start(scratch: Path, command: list[str], **more) -> HelperProcess:
    settings = {"is_healthy": lambda: True, "wait_s": 10, **more}
    return HelperProcess("rewrite", scratch, command, **settings)


def start_family(scratch: Path) -> tuple[HelperProcess, list[int]]:
    """A helper and all its processes, the guard first."""
    pids = scratch / "pids"
    pids.unlink(missing_ok=True)
    helper = start(scratch, family(pids), is_healthy=pids.exists)
    return helper, [helper._guard.pid, *members(pids)]


@linux
def test_stop_ends_the_helper_and_children_that_left_its_group(tmp_path):
    helper, pids = start_family(tmp_path)
    assert helper.is_alive()
    assert living(pids) == pids
    helper.stop()
    assert not helper.is_alive()
    assert not living(pids)
    helper.stop()  # twice is once


@linux
def test_it_ends_when_nobody_uses_it_any_more(tmp_path):
    helper, pids = start_family(tmp_path)
    del helper
    gc.collect()
    assert not living(pids)


@linux
def test_a_worker_ends_it_before_the_next_step_starts(engine, tmp_path):
    log = tmp_path / "log"
    log.mkdir()
    recipe = f"  helped: {{uses: toy.helped, from: numbers, log: {log}, gate: {tmp_path}/none}}\n"
    with closing(LocalExecutor(1, with_main=False)) as executor:
        assert engine.run(recipe, executor=executor).complete
        (first,) = log.iterdir()
        pids = list(map(int, first.read_text().split()))
        assert living(pids) == pids  # the worker may need it for another shard
        squares = "  square: {uses: toy.power, from: numbers}\n"
        assert engine.run(squares, out="other", executor=executor).complete
        assert not left_after(pids, 5)


@linux
def test_a_dead_one_takes_its_children_along_and_is_started_again(tmp_path):
    helper, pids = start_family(tmp_path)
    os.kill(pids[1], signal.SIGKILL)
    assert not left_after(pids[2:], 5)
    helper._guard.wait(5)
    assert not helper.is_alive()
    (tmp_path / "pids").unlink()
    helper.restart()
    assert helper.is_alive()
    again = members(tmp_path / "pids")
    assert living(again) == again
    assert not set(again) & set(pids)
    helper.stop()
    assert not living(again)


@pytest.mark.chaos  # kills
@linux
def test_whoever_kills_the_workers_children_leaves_it_no_helper(tmp_path):
    """As Ray does when a worker has died: the guard is not one of them."""
    helper, pids = start_family(tmp_path)
    os.kill(pids[0], signal.SIGKILL)
    assert not left_after(pids[1:], 5)
    assert not helper.is_alive()
    helper.stop()


@pytest.mark.chaos  # kills
@linux
def test_with_its_guard_dies_the_helper_and_its_group(tmp_path):
    helper, pids = start_family(tmp_path)
    [guard_pid] = Path(f"/proc/{pids[0]}/task/{pids[0]}/children").read_text().split()
    os.kill(int(guard_pid), signal.SIGKILL)
    assert not left_after(pids[1:2], 5)
    helper.stop()
    assert not left_after([pids[3]], 5)
    os.kill(pids[2], signal.SIGKILL)  # it had left the group, and nobody knows of it


@linux
def test_what_ignores_sigterm_is_killed(tmp_path, monkeypatch):
    ready = tmp_path / "ready"
    slow = "import guard; guard.GRACE_S = 0.2; import sys, pathlib;" + (
        "sys.exit(guard.main(guard.Log(pathlib.Path(sys.argv[1])), int(sys.argv[2]), sys.argv[3:]))"
    )
    code = f"trap '' TERM; touch {ready}; while true; do sleep 0.1; done"
    folder = Path(guard.__file__).parent
    with subprocess.Popen(
        [sys.executable, "-c", slow, str(tmp_path / "log"), str(os.getpid()), "sh", "-c", code],
        stdin=subprocess.PIPE,
        cwd=folder,
        start_new_session=True,
    ) as process:
        while not ready.exists():
            assert process.poll() is None
        process.stdin.close()
        assert process.wait(5) == 128 + signal.SIGKILL


def test_one_that_ends_before_it_is_healthy_is_an_error_with_its_last_words(tmp_path):
    said = "echo ValueError: no such model; seq 30; echo bye; exit 3"
    with pytest.raises(StageError) as error:
        start(tmp_path, ["sh", "-c", said], is_healthy=lambda: False)
    found, where, do = error.value.args
    assert found.startswith("it ended with exit code 3 before it was healthy: \n")
    assert found.split()[-1] == "bye"
    assert "ValueError: no such model" in found
    assert "\n    12\n" not in found
    assert where == "stage 'rewrite', its helper sh -c " + said
    assert "last lines" in do


TORCHAUDIO = "/cache/lib/python3.11/site-packages/torchaudio/lib/_torchaudio.so"


@pytest.mark.parametrize("last", ["", "ValueError: model architectures failed to be inspected"])
def test_one_that_cannot_load_a_library_names_it_and_no_traceback(last, tmp_path):
    log = ["ModuleNotFoundError: No module named 'an_option'", "Traceback", *"abcdefgh"]
    log += [f"OSError: Could not load this library: {TORCHAUDIO}", *filter(None, [last])]
    (tmp_path / "log").write_text("\n".join(log))
    with pytest.raises(StageError) as error:
        start(tmp_path, ["sh", "-c", f"cat {tmp_path}/log; exit 1"], is_healthy=lambda: False)
    found, where, do = error.value.args
    assert found == (
        f"it ended with exit code 1 before it was healthy: it cannot load {TORCHAUDIO}"
        + (f"; its last line: {last}" if last else "")
    )
    assert where.startswith("stage 'rewrite', its helper sh -c ")
    assert do.startswith("mend torchaudio there, or take it out, with `sh -m pip`")


def test_whatever_python_says_of_a_library_or_module_names_it_and_its_package():
    lines = {
        f"OSError: Could not load this library: {TORCHAUDIO}": (TORCHAUDIO, "torchaudio"),
        "(pid=7) ImportError: libGL.so.1: cannot open shared object": ("libGL.so.1", "libGL"),
        "ImportError: /site-packages/x/_C.so: undefined symbol": ("/site-packages/x/_C.so", "x"),
        "ModuleNotFoundError: No module named 'a.b'": ("a.b", "a"),
        "ImportError: cannot import name 'c' from 'a.b' (/a/b.py)": ("a.b", "a"),
    }
    for line, (name, package) in lines.items():
        found, do = cannot_load(f"Traceback\n{line}\n", "python") or ("", "")
        assert found == f"cannot load {name}"
        assert do.startswith(f"mend {package} there")
    assert cannot_load("ValueError: no such model\nOSError: [Errno 28] No space left", "") is None


def test_one_that_is_not_healthy_in_time_is_ended(tmp_path):
    pids = tmp_path / "pids"
    with pytest.raises(StageError, match=r"was not healthy within 0.3 s, and wrote nothing"):
        start(tmp_path, family(pids), is_healthy=lambda: False, wait_s=0.3)
    assert not living(members(pids))


def test_one_that_cannot_be_started_is_an_error(tmp_path):
    with pytest.raises(StageError, match=r"nosuch: No such file"):
        start(tmp_path, [str(tmp_path / "nosuch")], is_healthy=lambda: False)


def test_one_ended_by_a_signal_is_told_so(tmp_path):
    with pytest.raises(StageError, match=r"ended with SIGSEGV before"):
        start(tmp_path, ["sh", "-c", "kill -SEGV $$"], is_healthy=lambda: False)


def test_the_log_has_no_keys(tmp_path):
    said = "echo key is $SERVER_API_KEY at s3://me:word@bucket/x, kept: $PLAIN; sleep 600"
    env = {"SERVER_API_KEY": "k1234567", "PLAIN": "k7654321"}
    helper = start(tmp_path, ["sh", "-c", said], env=env)
    try:
        while not helper.log().endswith("\n"):
            assert helper.is_alive()
        assert helper.log() == "key is … at s3://bucket/x, kept: k7654321\n"
    finally:
        helper.stop()


def test_the_log_is_capped_and_keeps_the_last(tmp_path):
    log = guard.Log(tmp_path / "it.log")
    for number in range(3000):
        log.write(b"%06d" % number + b"x" * 993 + b"\n")
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(sizes) == {"it.log", "it.old"}
    assert max(sizes.values()) <= guard.MOST_LOG + 1000
    assert (tmp_path / "it.log").read_bytes().splitlines()[-1][:6] == b"002999"


def test_a_fork_of_the_worker_does_not_end_its_helper(tmp_path):
    helper = start(tmp_path, ["sleep", "600"])
    child = os.fork()
    if not child:
        helper.stop()
        os._exit(0)
    os.waitpid(child, 0)
    assert helper.is_alive()
    helper.stop()
