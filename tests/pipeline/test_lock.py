"""The run's lock: one run a folder, dead holders, leases that lapse."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from metadata.storage import Storage
from pipeline import lock
from pipeline.errors import RecipeError
from tests.engine_stages.harness import environment

HOLDER = """
import sys, time
from metadata.storage import Storage
from pipeline import lock
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


def test_a_pid_that_another_process_has_by_now_is_dead(run):
    write_lease(run, host=socket.gethostname(), pid=os.getppid(), started="1")
    with lock.held(run):
        pass


def test_a_lease_from_elsewhere_holds_until_it_lapses(run):
    write_lease(run)
    with pytest.raises(RecipeError, match="elsewhere"), lock.held(run):
        pass
    write_lease(run, expires=time.time() - 1)
    with lock.held(run):
        pass


def test_a_torn_lock_is_no_lock(run):
    for torn in (b"", b'{"owner": "x", "exp'):
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
    write_lease(run, owner="me", expires=time.time() + 1)
    lock._renew(run, "me", Thrice())
    assert json.loads(run.read(lock.NAME))["expires"] > time.time() + 30


def test_a_holder_that_lost_its_lock_does_not_take_it_back(run):
    with lock.held(run):
        write_lease(run)
        lock._renew(run, "me", Thrice())
    assert json.loads(run.read(lock.NAME))["owner"] == "another"


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
