"""What is the Ray executor's own: environment, logs, clusters."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from clipmill.pipeline.executors import ray_pools
from clipmill.pipeline.executors.ray import RayExecutor
from tests.pipeline.executors.work import adding, step

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
