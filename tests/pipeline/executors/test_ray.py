"""RayExecutor on a local Ray with two CPUs: results, deaths, errors, room for every profile."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import ray

from pipeline.errors import ShardError, StageError
from pipeline.executors import Step
from pipeline.executors.ray import RayExecutor
from pipeline.stage import Resources

pytestmark = pytest.mark.chaos

SMALL = Resources(cpus=1, memory_gb=0.1)
OTHER = Resources(cpus=1, memory_gb=0.2)
WHOLE = Resources(cpus=2, memory_gb=0.1)
ITEMS = [{"i": i} for i in range(30)]


@pytest.fixture(scope="module")
def executor():
    executor = RayExecutor(workers=2, env={"CLIPMILL_TEST_ENV": "given"})
    yield executor
    executor.close()
    assert not ray.is_initialized()


def start_adding(log: Path, name: str, killed_by: int | None = None):
    """Adds 1; writes a line when it is built and for each item; dies once on one item."""
    note(log, built=name, pid=os.getpid())

    def add(item):
        note(log, step=name, i=item["i"])
        if item["i"] == killed_by and not log.with_suffix(".killed").exists():
            log.with_suffix(".killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return item | {"sum": item.get("sum", 0) + 1, "pid": os.getpid()}

    return add


def note(log: Path, **line):
    with log.open("a") as file:
        file.write(json.dumps(line) + "\n")


def notes(log: Path, key: str):
    return [line for line in map(json.loads, log.read_text().splitlines()) if key in line]


def adding(log: Path, name: str, resources=SMALL, killed_by=None) -> Step:
    return Step(name=name, start=partial(start_adding, log, name, killed_by), resources=resources)


def function_step(function, resources=SMALL) -> Step:
    return Step(name=function.__name__, start=partial(partial, function), resources=resources)


def test_every_item_goes_through_every_step(executor, tmp_path):
    steps = [adding(tmp_path / "log", name) for name in ("first", "second")]
    results = list(executor.stream(steps, iter(ITEMS)))
    assert sorted((r["i"], r["sum"]) for r in results) == [(i, 2) for i in range(30)]


def test_a_function_is_built_once_in_a_worker_and_workers_outlive_the_stream(executor, tmp_path):
    steps = [adding(tmp_path / "log", name) for name in ("first", "second")]
    for _ in range(2):
        assert len(list(executor.stream(steps, ITEMS))) == 30
    built = Counter((line["built"], line["pid"]) for line in notes(tmp_path / "log", "built"))
    assert len({pid for _, pid in built}) <= 2
    assert set(built.values()) <= {1, 2}  # once a stream


def test_no_items_are_no_results(executor, tmp_path):
    assert list(executor.stream([adding(tmp_path / "log", "first")], [])) == []


def test_results_come_while_items_are_still_taken(executor, tmp_path):
    taken = []
    source = (taken.append(i) or {"i": i} for i in range(1000))
    stream = executor.stream([adding(tmp_path / "log", "first")], source)
    next(stream)
    assert len(taken) <= 34
    stream.close()


@pytest.mark.parametrize("resources", [SMALL, OTHER], ids=["one profile", "two profiles"])
def test_a_killed_worker_costs_its_item_one_more_try(executor, tmp_path, resources):
    log = tmp_path / "log"
    steps = [adding(log, "first"), adding(log, "second", resources, killed_by=11)]
    results = list(executor.stream(steps, ITEMS))
    assert sorted((r["i"], r["sum"]) for r in results) == [(i, 2) for i in range(30)]
    tries = Counter((line["step"], line["i"]) for line in notes(log, "step"))
    assert {key: n for key, n in tries.items() if n > 1} == {("second", 11): 2}


def fail_on_seven(item):
    if item["i"] == 7:
        raise ShardError("seven", "shard 7", "leave it out")
    return item


def test_an_exception_arrives_as_it_was_raised(executor, tmp_path):
    with pytest.raises(ShardError) as caught:
        list(executor.stream([function_step(fail_on_seven)], ITEMS))
    assert type(caught.value) is ShardError
    assert caught.value.args == ("seven", "shard 7", "leave it out")
    assert len(list(executor.stream([adding(tmp_path / "log", "after")], ITEMS))) == 30


class OnlyHere:
    def __reduce__(self):
        return __import__, ("no_such_module",)  # pickles here, can't be read in a worker


def test_a_step_that_workers_cannot_import_ends_the_stream(executor):
    with pytest.raises(StageError, match="No module named 'no_such_module'"):
        list(executor.stream([Step(name="lost", start=OnlyHere(), resources=SMALL)], ITEMS))


class UnpicklableError(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")  # args don't match the signature


def raise_unpicklable(item):
    raise UnpicklableError("this", "that")


def test_an_exception_that_does_not_pickle_ends_the_stream_too(executor):
    with pytest.raises(Exception, match="this and that"):
        list(executor.stream([function_step(raise_unpicklable)], ITEMS))


@pytest.mark.parametrize(
    "profiles",
    [(SMALL, WHOLE), (WHOLE, SMALL, OTHER)],
    ids=["the second takes all", "the first takes all"],
)
def test_profiles_that_compete_for_two_cpus_all_get_their_turn(executor, tmp_path, profiles):
    steps = [adding(tmp_path / "log", str(n), profile) for n, profile in enumerate(profiles)]
    results = list(executor.stream(steps, ITEMS))
    assert sorted((r["i"], r["sum"]) for r in results) == [(i, len(steps)) for i in range(30)]


def test_resources_that_no_node_has_are_an_error_at_once(executor, tmp_path):
    step = adding(tmp_path / "log", "first", Resources(gpus=64))
    with pytest.raises(StageError, match="no place for"):
        list(executor.stream([step], ITEMS))


def start_dying():
    os.kill(os.getpid(), signal.SIGKILL)


def test_workers_that_cannot_start_end_the_stream(executor):
    with pytest.raises(StageError, match="die before they start"):
        list(executor.stream([Step(name="dying", start=start_dying, resources=SMALL)], ITEMS))


def see_environment(item):
    names = ("CLIPMILL_TEST_ENV", "CLIPMILL_FROM_DRIVER", "OMP_NUM_THREADS", "POLARS_MAX_THREADS")
    return item | {name: os.environ.get(name) for name in names} | {"path": sys.path}


def test_workers_see_the_environment_the_threads_and_the_import_path(
    executor, tmp_path, monkeypatch
):
    monkeypatch.setenv("CLIPMILL_FROM_DRIVER", "seen")
    monkeypatch.syspath_prepend(tmp_path)
    step = function_step(see_environment, Resources(cpus=2, memory_gb=0.3))
    (result,) = executor.stream([step], ITEMS[:1])
    assert result["CLIPMILL_TEST_ENV"] == "given"
    assert result["CLIPMILL_FROM_DRIVER"] == "seen"
    assert result["OMP_NUM_THREADS"] == result["POLARS_MAX_THREADS"] == "2"
    assert str(tmp_path) in result["path"]


def complain_as_a_c_library(item):
    os.write(2, b"TIFFReadDirectory: \x1b[31mevil\n")
    return item | {"log": os.readlink("/proc/self/fd/2")}


def test_what_a_worker_writes_stays_in_its_log(executor, capfd):
    (result,) = executor.stream([function_step(complain_as_a_c_library)], ITEMS[:1])
    assert "TIFFReadDirectory: " in Path(result["log"]).read_text()
    assert capfd.readouterr() == ("", "")


def start_later_than_its_file(folder: Path):
    return (folder / "gone").read_text()


def test_an_exception_in_start_arrives_as_it_was_raised(executor, tmp_path):
    start = partial(start_later_than_its_file, tmp_path)
    with pytest.raises(FileNotFoundError):
        list(executor.stream([Step(name="late", start=start, resources=SMALL)], ITEMS))


ANOTHER_DRIVER = """
import sys
from functools import partial
from pipeline.executors import Step
from pipeline.executors.ray import RayExecutor
from pipeline.stage import Resources

executor = RayExecutor(address=sys.argv[1])
step = Step(name="same", start=partial(partial, dict), resources=Resources(memory_gb=0.1))
print(sorted(item["i"] for item in executor.stream([step], ({"i": i} for i in range(5)))))
executor.close()
"""


def test_a_cluster_it_connects_to_is_left_running(executor, tmp_path):
    executor.drop_kept()
    address = ray.get_runtime_context().gcs_address
    driver = [sys.executable, "-c", ANOTHER_DRIVER, address]
    ended = subprocess.run(driver, capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.strip() == "[0, 1, 2, 3, 4]"
    assert len(list(executor.stream([adding(tmp_path / "log", "after")], ITEMS))) == 30


def meet(folder: Path, rank: int, workers: int):
    """Waits until all ranks are there: they run side by side or never end."""
    (folder / str(rank)).touch()
    while len(list(folder.iterdir())) < workers:
        time.sleep(0.01)
    return {"rank": rank, "pid": os.getpid()}


def test_launch_runs_every_rank_side_by_side(executor, tmp_path):
    results = executor.launch(partial(meet, tmp_path), 2, SMALL)
    assert [result["rank"] for result in results] == [0, 1]
    assert len({result["pid"] for result in results}) == 2


def fail_or_stay(folder: Path, how: str, rank: int, workers: int):
    (folder / str(rank)).write_text(str(os.getpid()))
    while len(list(folder.iterdir())) < workers or rank == 0:
        time.sleep(0.01)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ShardError("rank", "one", "nothing")


@pytest.mark.parametrize(("how", "error"), [("raises", ShardError), ("killed", StageError)])
def test_a_rank_that_fails_ends_all_ranks(executor, tmp_path, how, error):
    with pytest.raises(error):
        executor.launch(partial(fail_or_stay, tmp_path, how), 2, SMALL)
    staying = Path("/proc", (tmp_path / "0").read_text())
    deadline = time.monotonic() + 10
    while staying.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not staying.exists()
