"""What is the Ray executor's own: environment, logs, clusters."""

import os
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from clipmill.pipeline.executors import ray_pools
from clipmill.pipeline.executors.ray import RayExecutor
from tests.pipeline.executors.work import Weighed, adding, step

pytestmark = pytest.mark.chaos

ITEMS = [{"i": i} for i in range(30)]


@pytest.fixture(scope="module")
def executor():
    executor = RayExecutor(workers=2, env={"CLIPMILL_TEST_ENV": "given"})
    yield executor
    executor.close()
    assert not ray.is_initialized()


def see_environment(item):
    return os.environ["CLIPMILL_TEST_ENV"]


def test_workers_see_the_environment_that_the_executor_was_given(executor):
    assert list(executor.stream([step(see_environment)], ITEMS[:1])) == ["given"]


def complain_as_a_c_library(item):
    os.write(2, b"TIFFReadDirectory: \x1b[31mevil\n")
    return item | {"log": os.readlink("/proc/self/fd/2")}


def test_what_a_worker_writes_stays_in_its_log(executor, capfd):
    (result,) = executor.stream([step(complain_as_a_c_library)], ITEMS[:1])
    assert "TIFFReadDirectory: " in Path(result["log"]).read_text()
    assert capfd.readouterr() == ("", "")


def grow_or_wait(item: Weighed) -> Weighed:
    """The seventh takes six gigabytes at most; the others take their time, so that some meet it."""
    taken = []
    while item.i == 7 and len(taken) < 150:
        taken.append(b"x" * 40_000_000)
        time.sleep(0.02)
    time.sleep(0.2)
    return item


@pytest.mark.soak(cpu_s=20)
def test_of_workers_that_ray_ends_for_memory_the_one_that_took_it_is_told(monkeypatch):
    """Ray watches the memory of the machine: there are three gigabytes until it ends workers."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    kilobytes = {name: int(rest.split()[0]) for name, rest in (it.split(":") for it in lines)}
    taken = kilobytes["MemTotal"] - kilobytes["MemAvailable"] + (3 << 20)
    monkeypatch.setenv("RAY_memory_usage_threshold", str(taken / kilobytes["MemTotal"]))
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "50")
    lives: list[Weighed] = []
    with closing(RayExecutor(workers=2)) as executor:
        bury = executor._bury

        def buried(pool, actor, error):
            bury(pool, actor, error)
            if actor.job:
                lives.append(replace(actor.job[2]))
                if actor.job[2].i == 7:
                    actor.job[2].i = 107  # it takes nothing when it is tried again

        executor._bury = buried
        done = list(executor.stream([step(grow_or_wait)], [Weighed(i) for i in range(40)]))
    assert sorted(item.i for item in done) == [*range(7), *range(8, 40), 107]
    (seventh,) = (item for item in lives if item.i == 7)
    assert seventh.begun
    assert seventh.ended.startswith("it took ")
    assert [item for item in lives if item.i != 7 and (item.begun or item.ended)] == []


ANOTHER_DRIVER = """
import sys
from functools import partial
from clipmill.pipeline.executors import Step
from clipmill.pipeline.executors.ray import RayExecutor
from clipmill.pipeline.stage import Resources

executor = RayExecutor(address=sys.argv[1])
step = Step(name="same", start=partial(partial, dict), resources=Resources(memory_gb=0.1))
print(sorted(item["i"] for item in executor.stream([step], ({"i": i} for i in range(5)))))
executor.close()
"""


def test_a_cluster_it_connects_to_is_left_running_and_idle_workers_leave_it_room(
    executor, tmp_path, monkeypatch
):
    monkeypatch.setattr(ray_pools, "KEPT_S", 0.1)
    address = ray.get_runtime_context().gcs_address
    driver = [sys.executable, "-c", ANOTHER_DRIVER, address]
    ended = subprocess.run(driver, capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.strip() == "[0, 1, 2, 3, 4]"
    assert len(list(executor.stream([adding(tmp_path / "log", "after")], ITEMS))) == 30
