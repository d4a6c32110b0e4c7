"""Drivers on S3 that lost their lock while a request was under way: the store takes no byte."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from botocore.httpsession import URLLib3Session
from pyarrow import fs

from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import LostLockError, RecipeError
from clipmill.pipeline.run_folder import lock
from clipmill.pipeline.run_folder.fenced import fenced
from tests.chaos.conftest import RECIPE, Bucket
from tests.engine_stages.harness import environment, toy_stages
from tests.pipeline.run_folder.test_lock import Thrice, write_lease

pytestmark = pytest.mark.chaos
LEASE_S = 4.0
SLEEPER = f"""
import os, re, signal, sys
from botocore.httpsession import URLLib3Session
from clipmill.pipeline.run_folder import lock
from clipmill.pipeline.cli import main
lock.LEASE_S = {LEASE_S}
send, places = URLLib3Session.send, [sys.argv[1]]
def stopped(session, request):
    if places and re.search(places[0], request.method + " " + request.url):
        places.clear()
        os.kill(os.getpid(), signal.SIGSTOP)
    return send(session, request)
URLLib3Session.send = stopped
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def run(bucket, proxy, request, monkeypatch) -> Storage:
    """A folder of the bucket, through the proxy, with a short lease."""
    monkeypatch.setattr(lock, "LEASE_S", LEASE_S)
    name = re.sub(r"\W+", "-", request.node.name)
    return Storage(replace(bucket, port=proxy.port).uri(name))


def objects(run: Storage) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of every object but the lock."""
    found = run.fs.get_file_info(fs.FileSelector(run.path, recursive=True))
    return {
        info.path: (run.fs.open_input_file(info.path).read(), info.mtime_ns)
        for info in found
        if info.is_file and info.base_name != lock.NAME
    }


def until_lapsed(run: Storage) -> None:
    lease = json.loads(run.read(lock.NAME))
    time.sleep(max(0, lease["expires"] - time.time()) + 0.01)


@contextmanager
def before_sending(monkeypatch, place: str, act) -> Iterator[None]:
    """Acts once a request that matches is signed, before the store has it."""
    send, places = URLLib3Session.send, [place]

    def later(session, request):
        if places and re.search(places[0], f"{request.method} {request.url}"):
            places.clear()
            act()
        return send(session, request)

    with monkeypatch.context() as patch:
        patch.setattr(URLLib3Session, "send", later)
        yield
    assert not places, "no such request was made"


@pytest.mark.parametrize(
    ("place", "change"),
    [
        ("PUT .*/record", lambda run: run.put("record", b"late", "record")),
        ("PUT .*/new", lambda run: run.put("new", b"late", "record")),
        ("POST .*/large.*uploadId", lambda run: run.put("large", b"late" * (9 << 18), "rename")),
        ("PUT .*/copy", lambda run: run.put_copy("copy", run, "record")),
        ("DELETE .*/record", lambda run: run.delete("record")),
        (r"POST .*\?delete", lambda run: run.delete_folder("folder")),
    ],
    ids=["replaced", "new", "large", "copied", "deleted", "folder deleted"],
)
def test_what_is_signed_before_the_lock_is_lost_is_refused_after(place, change, run, monkeypatch):
    """Both ways: what comes in time is done, by the same request."""

    def lose() -> None:
        write_lease(run)
        time.sleep(LEASE_S)

    for name in ("record", "folder/one"):
        run.put(name, b"first", "record")
    before = objects(run)
    with (
        pytest.raises(LostLockError),
        lock.held(run) as owned,
        before_sending(monkeypatch, place, lose),
    ):
        change(owned)
    assert objects(run) == before
    run.delete(lock.NAME)
    with lock.held(run) as owned, before_sending(monkeypatch, place, lambda: None):
        change(owned)
    assert objects(run) != before


def test_of_two_that_find_no_lock_at_once_one_gets_it(run, monkeypatch):
    with (
        before_sending(monkeypatch, f"PUT .*/{lock.NAME}", lambda: write_lease(run)),
        pytest.raises(RecipeError, match="process 1 on elsewhere"),
        lock.held(run),
    ):
        pass
    assert json.loads(run.read(lock.NAME))["owner"] == "another"


def test_a_renewal_that_was_under_way_does_not_take_the_lock_back(run, monkeypatch):
    write_lease(run, owner="me", expires=0)
    with before_sending(monkeypatch, f"PUT .*/{lock.NAME}", lambda: write_lease(run)):
        lock._renew(run, "me", Thrice())
    assert json.loads(run.read(lock.NAME))["owner"] == "another"
    write_lease(run, owner="me", expires=0)
    lock._renew(run, "me", Thrice())
    assert json.loads(run.read(lock.NAME))["expires"] > time.time()


def test_a_worker_whose_driver_renews_no_more_stops_before_another_takes_over(run):
    hold = lock.Hold(run, "me", LEASE_S / 4)
    write_lease(run, owner="me", expires=math.ceil(time.time() + LEASE_S))
    hold.check()
    assert hold.good_until < time.time() + LEASE_S / 2
    write_lease(run, owner="me", expires=time.time())
    hold.good_until = 0
    with pytest.raises(LostLockError, match="has not renewed it"):
        hold.check()


def test_a_store_that_went_away_is_said_without_keys_and_signature(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    gone = Storage(Bucket(9).uri("gone"))
    store = fenced(gone.uri, gone.fs, lambda: 5)
    with pytest.raises(OSError, match=r"AWS Error NETWORK_CONNECTION.*127.0.0.1:9") as said:
        store.delete_file(gone.locate("record"))
    assert not re.search("KEY|SECRET|Signature", str(said.value))


@pytest.mark.drawn(cases=1, cpu_s=20)
@pytest.mark.parametrize(
    ("first", "second", "ends"),
    [
        ("PUT .*/square.*/000001.json", "PUT .*/square.*/manifest", signal.SIGCONT),
        ("PUT .*/square.*/000000-", "PUT .*/journal|PUT .*calls", signal.SIGKILL),
        ("PUT .*/manifest", r"POST .*\?delete|DELETE", signal.SIGCONT),
    ],
    ids=["record", "data", "manifest"],
)
def test_of_three_drivers_two_of_which_slept_the_store_has_the_bytes_of_the_last(
    first, second, ends, run, pool, tmp_path, clipmill
):
    arguments = ("run", RECIPE, "--set", f"numbers.path={pool}", "--workers", 0, "--out", run.uri)
    sleepers: list[subprocess.Popen[str]] = []

    def sleep_at(place: str) -> None:
        sleeper = subprocess.Popen(
            [sys.executable, "-c", SLEEPER, place, *map(str, arguments)],
            env=environment(tmp_path / f"faults-{len(sleepers)}", "any:0"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        sleepers.append(sleeper)
        _, status = os.waitpid(sleeper.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), sleeper.communicate()
        until_lapsed(run)

    try:
        sleep_at(first)
        sleep_at(second)
        with toy_stages():
            done = clipmill(*arguments)
        assert done.code == 0, done.out + done.err
        expected = objects(run)
        for sleeper, number in zip(sleepers, (signal.SIGCONT, ends), strict=True):
            sleeper.send_signal(number)
        said = [sleeper.communicate(timeout=60)[0] for sleeper in sleepers]
    finally:
        for sleeper in sleepers:
            sleeper.kill()
    assert sleepers[0].returncode == 1, said[0]
    assert "another run took this folder over" in said[0]
    assert "Traceback" not in said[0]
    assert sleepers[1].returncode == (1 if ends == signal.SIGCONT else -ends), said[1]
    assert objects(run) == expected
