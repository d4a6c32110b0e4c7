"""The run's lock: one run a folder, dead holders, leases that lapse."""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import LostLockError, RecipeError
from clipmill.pipeline.run_folder import lock
from tests.engine_stages.harness import environment

HOLDER = """
import sys, time
from clipmill.metadata.storage import Storage
from clipmill.pipeline.run_folder import lock
lock.LEASE_S = float(sys.argv[2])
with lock.held(Storage(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def run(tmp_path) -> Storage:
    return Storage(str(tmp_path / "run"))


@pytest.fixture
def holder(run, tmp_path):
    """A process that holds the lock for ever; `lease_s` and a fault are its own."""
    started = []

    def start(lease_s: float = 60.0, fault: str = "any:0") -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, run.uri, str(lease_s)],
            env=environment(tmp_path / "faults", fault),
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def write_lease(run: Storage, **changes: object) -> None:
    lease = {
        "owner": "another",
        "host": "elsewhere",
        "pid": 1,
        "started": "",
        "expires": time.time() + 60,
    }
    run.put(lock.NAME, json.dumps(lease | changes).encode(), point="lock")


def test_a_lock_is_there_while_it_is_held_and_gone_after(run):
    with lock.held(run):
        lease = json.loads(run.read(lock.NAME))
        assert (lease["pid"], lease["host"]) == (os.getpid(), socket.gethostname())
    assert run.entries() == []


def test_a_lock_is_given_back_by_a_run_that_fails(run):
    with pytest.raises(ZeroDivisionError), lock.held(run):
        raise ZeroDivisionError
    assert run.entries() == []


def test_a_second_run_is_refused_and_told_by_whom(run, holder):
    process = holder()
    with pytest.raises(RecipeError) as refused, lock.held(run):
        pass
    found, where, do = refused.value.args
    assert f"process {process.pid} on {socket.gethostname()}" in found
    assert where == str(run)
    assert "--out" in do
    assert json.loads(run.read(lock.NAME))["pid"] == process.pid


def test_a_dead_holders_lock_is_taken_over_at_once(run, holder):
    process = holder()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with lock.held(run):
        assert json.loads(run.read(lock.NAME))["pid"] == os.getpid()
    assert run.entries() == []


def test_a_zombies_lock_is_taken_over_at_once(run, holder):
    process = holder()
    os.killpg(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody asks how
    with lock.held(run):
        assert json.loads(run.read(lock.NAME))["pid"] == os.getpid()


def test_a_pid_that_another_process_has_by_now_is_dead(run):
    write_lease(run, host=socket.gethostname(), pid=os.getppid(), started="1")
    with lock.held(run):
        pass


def test_a_process_whose_name_is_no_unicode_holds_its_lock(run):
    named = """
import ctypes, sys
ctypes.CDLL(None).prctl(15, b"\\xd0\\xba\\xd0")
print("named", flush=True)
sys.stdin.read()  # it lives until it was looked at
"""
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", named], **pipe) as process:
        assert process.stdout.readline() == b"named\n"
        write_lease(run, host=socket.gethostname(), pid=process.pid)
        assert lock.holder(run).pid == process.pid


def test_a_lease_from_elsewhere_holds_until_it_lapses(run):
    write_lease(run)
    with pytest.raises(RecipeError, match="elsewhere"), lock.held(run):
        pass
    write_lease(run, expires=time.time() - 1)
    with lock.held(run):
        pass


def test_a_torn_lock_is_no_lock(run):
    for torn in (b"", b'{"owner": "x", "exp', b"{}", b"[1]", b"null", b'{"expires": "x"}'):
        run.put(lock.NAME, torn, point="lock")
        with lock.held(run):
            pass


class Thrice:
    """An event that is set at the fourth look."""

    looks = 0

    def wait(self, timeout: float) -> bool:
        assert timeout == lock.LEASE_S / 4
        self.looks += 1
        return self.looks > 3


def test_a_lease_is_renewed_while_its_holder_lives(run):
    write_lease(run, **json.loads(lock._lease("me")) | {"expires": int(time.time()) + 1})
    lock._renew(run, "me", Thrice())
    assert json.loads(run.read(lock.NAME))["expires"] > time.time() + 30


def test_a_holder_that_lost_its_lock_does_not_take_it_back(run):
    with lock.held(run):
        write_lease(run)
        lock._renew(run, "me", Thrice())
    assert json.loads(run.read(lock.NAME))["owner"] == "another"


def test_who_lost_the_lock_puts_and_deletes_nothing_more(run):
    with lock.held(run) as owned:
        owned.hold.every_s = 0.0  # looked at each time
        stage = pickle.loads(pickle.dumps(owned.child("stage")))  # as a worker gets it
        stage.put("mine", b"1", point="record")
        write_lease(run)
        for write in (
            partial(stage.put, "mine", b"2", point="record"),
            partial(stage.delete, "mine"),
            partial(owned.delete_folder, "stage"),
            owned.sweep,
        ):
            with pytest.raises(LostLockError, match="process 1 on elsewhere"):
                write()
    assert (Path(run.path) / "stage" / "mine").read_bytes() == b"1"


def test_a_lock_that_is_read_while_it_is_renewed_is_read_again(run, monkeypatch):
    with lock.held(run) as owned:
        read, torn = run.read, [b'{"owner": "']
        monkeypatch.setattr(owned.hold.run, "read", lambda name: (torn or [read(name)]).pop())
        owned.hold.good_until = 0
        owned.put("it", b"", point="rename")
    assert torn == []


def test_a_clock_that_is_set_back_does_not_hide_that_the_lock_is_lost(run, monkeypatch):
    with lock.held(run) as owned:
        owned.put("mine", b"1", point="record")
        write_lease(run)
        now = time.time() - 3600
        monkeypatch.setattr(time, "time", lambda: now)
        with pytest.raises(LostLockError):
            owned.put("mine", b"2", point="record")


def test_what_still_runs_of_a_run_that_has_ended_writes_nothing_more(run):
    with lock.held(run) as owned:
        owned.put("mine", b"1", point="record")
    with pytest.raises(LostLockError):
        owned.put("mine", b"2", point="record")


SLEEPER = """
import os, signal, sys
from clipmill.metadata import storage
from clipmill.pipeline.run_folder import lock
from clipmill.pipeline.cli import main
lock.LEASE_S = 0.04  # renewed every 10 ms: a run may take no more than 100
point, part = sys.argv[1:3]
def reached(here, name):
    if here == point and part in name:
        storage.reached = lock.reached = lambda here, name: None
        os.kill(os.getpid(), signal.SIGSTOP)
storage.reached = lock.reached = reached
sys.exit(main(sys.argv[3:]))
"""
STAGES = """
  square: {uses: toy.power, from: numbers}
  centre: {uses: toy.centre, from: numbers, rounds: 1}
"""


@pytest.mark.drawn(cases=2, cpu_s=1)
@pytest.mark.parametrize(
    ("point", "part"),
    [
        ("rename", "000001-"),
        ("compaction", ""),
        ("lease", ""),  # between its look at the lock and the renewal
        ("recipe", ""),
        ("step", ""),
    ],
)
def test_a_driver_that_slept_through_its_lease_writes_no_more(point, part, engine, clipmill):
    engine.plan(STAGES)  # writes the recipe
    out = engine.folder / "run"
    run = ["run", engine.folder / "recipe.yaml", "--workers", 0, "--out", out]
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPER, point, part, *map(str, run)],
        env=environment(engine.folder / "faults", "any:0"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as sleeper:
        _, status = os.waitpid(sleeper.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        lapse = json.loads((out / lock.NAME).read_bytes())["expires"] - time.time()
        time.sleep(max(0, lapse) + 0.01)
        code, expected = clipmill(*run).code, contents(out)
        sleeper.send_signal(signal.SIGCONT)  # before anything is asserted: it would sleep on
        said, _ = sleeper.communicate(timeout=60)
    assert code == 0
    assert sleeper.returncode == 1, said
    assert "another run took this folder over" in said
    assert "Traceback" not in said
    assert contents(out) == expected


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of every file."""
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_kill_at_a_renewal_leaves_a_lock_that_the_next_run_takes(run, holder):
    process = holder(lease_s=0.04, fault="lease:2")
    assert process.wait(60) == -signal.SIGKILL
    with lock.held(run):
        assert json.loads(run.read(lock.NAME))["pid"] == os.getpid()


def test_of_many_that_find_a_dead_lock_one_gets_it(run):
    for _ in range(20):
        write_lease(run, expires=0)
        start, done = (threading.Barrier(8, timeout=60) for _ in range(2))
        got = []

        def contend(start=start, done=done, got=got):
            start.wait()
            try:
                with lock.held(run):
                    got.append(threading.get_ident())
                    done.wait()
            except RecipeError:
                done.wait()

        threads = [threading.Thread(target=contend) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1
