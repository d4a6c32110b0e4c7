"""What both executors keep to, the local one and the one on Ray: two CPUs, two GPUs."""

import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from clipmill.pipeline.errors import RankDiedError, RetryableError, ShardError, StageError
from clipmill.pipeline.executors import Step, local, machine, ray_pools
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.executors.ranks import Ends
from clipmill.pipeline.stage import Resources
from tests.pipeline.executors.work import (
    LIMIT_S,
    ONE,
    OTHER,
    WHOLE,
    Asking,
    adding,
    fail_on_seven,
    fail_or_stay,
    find_the_port_taken,
    hear_the_other_die,
    meet,
    notes,
    overlap,
    raise_unpicklable,
    rest,
    see,
    see_gpus,
    see_its_gpu,
    start_asking,
    start_dying,
    start_later_than_its_file,
    step,
    stop_at,
    tell_and_wait,
    until,
    wait_for,
)

ITEMS = [{"i": i} for i in range(30)]
GPU = Resources(gpus=1, memory_gb=0.1)
HALF_GPU = Resources(gpus=0.5, memory_gb=0.1)


def on_ray():
    from clipmill.pipeline.executors.ray import RayExecutor

    return RayExecutor(workers=2)


@pytest.fixture(
    scope="module",
    params=[partial(LocalExecutor, 2), pytest.param(on_ray, marks=pytest.mark.drawn(one_in=3))],
    ids=["local", "ray"],
)
def executor(request):
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("CUDA_VISIBLE_DEVICES", "0,1")
        made = request.param()
        yield made
        made.close()


# What work tells


def test_what_a_function_tells_while_it_works_reaches_the_driver(executor, tmp_path):
    told = []
    executor.on_told = told.append
    (tmp_path / "gate").touch()

    def open_gate():
        until(lambda: ("half", 3) in told)  # while the item is in hand
        (tmp_path / "gate").unlink()

    watcher = threading.Thread(target=open_gate)
    watcher.start()
    assert list(executor.stream([step(partial(tell_and_wait, tmp_path / "gate"))], [3])) == [3]
    watcher.join()


# Items


def test_every_item_goes_through_every_step(executor, tmp_path):
    steps = [adding(tmp_path / "log", name) for name in ("first", "second")]
    results = list(executor.stream(steps, iter(ITEMS)))
    assert sorted((r["i"], r["sum"]) for r in results) == [(i, 2) for i in range(30)]


def test_no_items_are_no_results(executor, tmp_path):
    assert list(executor.stream([adding(tmp_path / "log", "first")], [])) == []


def test_results_come_while_items_are_still_taken(executor, tmp_path):
    taken = []
    source = (taken.append(i) or {"i": i} for i in range(1000))
    stream = executor.stream([adding(tmp_path / "log", "first")], source)
    next(stream)
    assert len(taken) <= 34
    stream.close()


def test_a_step_starts_once_in_a_worker_and_workers_outlive_the_stream(executor, tmp_path):
    steps = [adding(tmp_path / "log", name) for name in ("first", "second")]
    for _ in range(2):
        assert len(list(executor.stream(steps, ITEMS))) == 30
    built = Counter((line["built"], line["pid"]) for line in notes(tmp_path / "log", "built"))
    assert len({pid for _, pid in built}) <= 2
    assert set(built.values()) <= {1, 2}  # once a stream


# Deaths


@pytest.mark.parametrize("resources", [ONE, OTHER], ids=["one profile", "two profiles"])
def test_a_killed_worker_costs_its_item_one_more_try(executor, tmp_path, resources):
    log = tmp_path / "log"
    steps = [adding(log, "first"), adding(log, "second", resources, killed_by=11)]
    results = list(executor.stream(steps, ITEMS))
    assert sorted((r["i"], r["sum"]) for r in results) == [(i, 2) for i in range(30)]
    tries = Counter((line["step"], line["i"]) for line in notes(log, "step"))
    assert {key: n for key, n in tries.items() if n > 1} == {("second", 11): 2}


def test_an_item_whose_worker_died_says_so_where_it_has_a_field_for_it(executor):
    step = Step(name="asking", start=start_asking, resources=ONE)
    results = list(executor.stream([step], [Asking(number) for number in range(20)]))
    assert sorted(item.number for item in results) == list(range(20))
    assert [item.number for item in results if item.begun] == [11]


@pytest.mark.chaos  # seconds
def test_workers_that_die_as_a_step_starts_end_the_stream(executor):
    with pytest.raises(StageError, match="die before they start") as caught:
        list(executor.stream([Step(name="dying", start=start_dying, resources=ONE)], ITEMS))
    assert caught.value.args[1] == "step dying"


# Errors


def test_an_exception_arrives_as_it_was_raised_and_the_next_stream_gets_its_own_items(
    executor, tmp_path
):
    with pytest.raises(ShardError) as caught:
        list(executor.stream([step(fail_on_seven)], ITEMS))
    assert type(caught.value) is ShardError
    assert caught.value.args == ("seven", "shard 7", "leave it out")
    results = executor.stream([adding(tmp_path / "log", "after")], ITEMS)
    assert sorted((r["i"], r["sum"]) for r in results) == [(i, 1) for i in range(30)]


def test_an_exception_that_does_not_pickle_ends_the_stream_in_words(executor):
    with pytest.raises(Exception, match="this and that"):
        list(executor.stream([step(raise_unpicklable)], ITEMS))


def test_an_exception_in_start_arrives_as_it_was_raised(executor, tmp_path):
    start = partial(start_later_than_its_file, tmp_path)
    with pytest.raises(FileNotFoundError):
        list(executor.stream([Step(name="late", start=start, resources=ONE)], ITEMS))


class OnlyHere:
    def __reduce__(self):
        return __import__, ("no_such_module",)  # pickles here, can't be read in a worker


def test_a_step_that_workers_cannot_import_ends_the_stream(executor):
    with pytest.raises((StageError, ModuleNotFoundError), match="no_such_module"):
        list(executor.stream([Step(name="lost", start=OnlyHere(), resources=ONE)], ITEMS))


def source_that_breaks():
    yield {"i": 0}
    raise ZeroDivisionError


def test_an_exception_of_the_source_is_the_streams_own(executor, tmp_path):
    with pytest.raises(ZeroDivisionError):
        list(executor.stream([adding(tmp_path / "log", "first")], source_that_breaks()))


# What a worker sees


def test_workers_see_clipmills_variables_their_threads_and_the_import_path(
    executor, tmp_path, monkeypatch
):
    monkeypatch.setenv("CLIPMILL_FROM_DRIVER", "seen")
    monkeypatch.syspath_prepend(tmp_path)
    (seen,) = executor.stream([step(see, Resources(cpus=2, memory_gb=0.3))], ITEMS[:1])
    assert seen["CLIPMILL_FROM_DRIVER"] == "seen"
    assert seen["OMP_NUM_THREADS"] == seen["POLARS_MAX_THREADS"] == "2"
    assert str(tmp_path) in seen["path"]


# Several streams


def side_by_side(*calls):
    """What the calls give, each in a thread of its own."""
    with ThreadPoolExecutor(len(calls)) as threads:
        return [future.result(LIMIT_S) for future in [threads.submit(call) for call in calls]]


def run(executor, steps, items):
    return list(executor.stream(steps, items))


def test_streams_run_side_by_side(executor, tmp_path):
    meeting = [partial(run, executor, [step(partial(stop_at, tmp_path, n, 2))], [0]) for n in "ab"]
    assert side_by_side(*meeting) == [["a"], ["b"]]


@pytest.mark.parametrize(
    "profiles",
    [(ONE, WHOLE), (WHOLE, ONE, OTHER)],
    ids=["the second takes all", "the first takes all"],
)
@pytest.mark.parametrize("streams", [1, 2])
def test_profiles_that_compete_for_two_cpus_all_get_their_turn(
    executor, tmp_path, profiles, streams
):
    steps = [adding(tmp_path / "log", str(n), profile) for n, profile in enumerate(profiles)]
    for results in side_by_side(*[partial(run, executor, steps, ITEMS)] * streams):
        assert sorted((r["i"], r["sum"]) for r in results) == [(i, len(steps)) for i in range(30)]


def endless(stop: threading.Event):
    i = 0
    while not stop.is_set():
        yield {"i": i}
        i += 1


@pytest.mark.parametrize("resources", [ONE, WHOLE], ids=["one CPU", "all CPUs"])
def test_a_stream_gets_room_beside_one_that_never_rests(executor, tmp_path, resources):
    stop = threading.Event()

    def never_resting():
        return len(run(executor, [adding(tmp_path / "log", "first", OTHER)], endless(stop)))

    def other():
        until((tmp_path / "log").exists)
        try:
            return len(run(executor, [adding(tmp_path / "other", "other", resources)], ITEMS))
        finally:
            stop.set()

    assert side_by_side(never_resting, other)[1] == 30


def test_a_profile_that_waited_long_for_its_room_has_a_whole_turn(executor, tmp_path, monkeypatch):
    for module in (local, ray_pools):
        monkeypatch.setattr(module, "TURN_S", 2.0)
    stop = threading.Event()
    log, other_log, stopped = (tmp_path / name for name in ("log", "other", "stopped"))

    def never_resting():
        return run(executor, [step(partial(rest, log, stopped), OTHER)], endless(stop))

    def other():
        until(log.exists)
        try:
            return run(executor, [adding(other_log, "other", WHOLE)], ITEMS[:4])
        finally:
            stop.set()
            stopped.touch()

    assert len(side_by_side(never_resting, other)[1]) == 4
    assert len(notes(other_log, "built")) == 1


def test_a_stream_that_ends_early_leaves_the_items_of_others_alone(executor, tmp_path):
    log, file = tmp_path / "log", tmp_path / "file"

    def waiting():
        return run(executor, [adding(log, "waiting"), step(partial(wait_for, file))], ITEMS[:1])

    def failing():
        until(log.exists)
        with pytest.raises(ShardError):
            run(executor, [step(fail_on_seven)], ITEMS)
        for _ in executor.stream([step(fail_on_seven)], ITEMS[:3]):
            break
        file.touch()

    assert [r["i"] for r in side_by_side(waiting, failing)[0]] == [0]
    assert len(notes(log, "step")) == 1


# Resources


@pytest.mark.chaos  # seconds
def test_workers_never_ask_for_more_than_there_is(executor, tmp_path):
    log, most_gb = tmp_path / "log", machine.memory_gb()
    profiles = [(1, 0.4 * most_gb), (1, 0.35 * most_gb), (2, 0.5 * most_gb)]
    calls = [
        partial(
            run,
            executor,
            [step(partial(overlap, log, cpus, gb), Resources(cpus=cpus, memory_gb=gb))],
            range(6),
        )
        for cpus, gb in profiles
    ]
    assert [len(results) for results in side_by_side(*calls)] == [6, 6, 6]
    spans = notes(log, "begin")
    for span in spans:
        beside = [s for s in spans if s["begin"] <= span["begin"] < s["end"]]
        assert sum(s["cpus"] for s in beside) <= 2
    assert max(span["living_gb"] for span in spans) <= most_gb


@pytest.mark.parametrize(
    ("resources", "workers", "seen"),
    [(GPU, 2, [{"0", "1"}]), (HALF_GPU, 2, [{"0"}, {"1"}]), (Resources(gpus=2), 1, [{"0,1"}])],
    ids=["one each", "shared", "both"],
)
def test_a_worker_sees_its_own_gpus_only(executor, tmp_path, resources, workers, seen):
    steps = [step(partial(see_gpus, tmp_path, workers), resources)]
    assert set(executor.stream(steps, range(workers))) in seen


def test_a_worker_without_gpus_sees_none(executor, tmp_path):
    assert list(executor.stream([step(partial(see_gpus, tmp_path, 1))], [0])) == [""]


@pytest.mark.parametrize(
    ("resources", "asked", "there"),
    [
        (Resources(gpus=3), "3 GPUs", "2 GPUs"),
        (Resources(memory_gb=1e6), "1000000.0 GB", "GB and 2 GPUs"),
    ],
)
def test_resources_that_are_nowhere_are_refused_by_name(
    executor, tmp_path, resources, asked, there
):
    with pytest.raises(StageError, match="no place for a worker") as caught:
        run(executor, [adding(tmp_path / "log", "first", resources)], ITEMS)
    found, where, do = caught.value.args
    assert asked in found
    assert found.endswith(there)
    assert where == "step first"
    assert "lower" in do
    with pytest.raises(StageError, match="no place for 2 workers"):
        executor.launch(partial(meet, tmp_path), 2, resources)


@pytest.mark.parametrize(
    ("resources", "held"), [(ONE, (1, 0)), (HALF_GPU, (1, 0.5))], ids=["cpu", "half a gpu"]
)
def test_workers_are_listed_with_machine_step_and_what_they_hold(
    executor, tmp_path, resources, held
):
    def working():
        return [worker for worker in executor.placed() if worker.step]

    def look(name: str):
        try:
            expected = [(name, *held, 2)]
            until(lambda: [(w.step, w.cpus, w.gpus, w.workers) for w in working()] == expected)
            [found] = working()
        finally:
            (tmp_path / name).touch()
        assert found.machine.startswith(socket.gethostname())

    waiting = step(partial(wait_for, tmp_path / "step"), resources)
    side_by_side(lambda: run(executor, [waiting], [1, 2]), lambda: look("step"))
    name = "launch of 2 workers"
    ranks = partial(wait_for, tmp_path / name)
    side_by_side(lambda: executor.launch(ranks, 2, resources), lambda: look(name))
    assert working() == []


# Launches


def test_launched_ranks_run_side_by_side_and_answer_in_order(executor, tmp_path):
    results = executor.launch(partial(meet, tmp_path), 3, ONE)  # more than there are CPUs
    assert [result["rank"] for result in results] == [0, 1, 2]
    assert len({result["pid"] for result in results}) == 3


def test_answers_are_in_the_order_of_ranks_whichever_ends_first():
    ends = Ends(3, 0)
    for rank in (2, 0, 1):
        assert ends.results() is None
        ends.add(rank, {"rank": rank})
    assert ends.results() == [{"rank": 0}, {"rank": 1}, {"rank": 2}]


@pytest.mark.parametrize(("how", "error"), [("raises", StageError), ("killed", RankDiedError)])
def test_a_rank_that_fails_ends_all_ranks(executor, tmp_path, how, error):
    with pytest.raises(error):
        executor.launch(partial(fail_or_stay, tmp_path, how), 2, ONE)
    staying = Path("/proc", (tmp_path / "0").read_text())
    until(lambda: not staying.exists())


def test_a_death_counts_where_its_echo_in_another_rank_is_heard_first(executor):
    with pytest.raises(RankDiedError):
        executor.launch(hear_the_other_die, 2, ONE)


def test_a_port_that_another_takes_first_is_an_error_that_may_pass(executor):
    with pytest.raises(RetryableError, match="ddress already in use"):
        executor.launch(find_the_port_taken, 2, ONE)


@pytest.mark.slow("all earlier workers end here")
def test_each_rank_has_a_gpu_of_its_own_and_knows_the_network(executor, tmp_path):
    seen = executor.launch(partial(see_its_gpu, tmp_path), 2, GPU)
    assert sorted(rank["gpu"] for rank in seen) == ["0", "1"]
    assert {rank["gloo"] for rank in seen} <= {name for _, name in socket.if_nameindex()}


@pytest.mark.chaos  # seconds
def test_a_launch_gets_room_beside_a_stream_that_never_rests(executor, tmp_path):
    stop = threading.Event()
    (tmp_path / "ranks").mkdir()

    def launched():
        until((tmp_path / "log").exists)
        try:
            return executor.launch(partial(meet, tmp_path / "ranks"), 2, ONE)
        finally:
            stop.set()

    def never_resting():
        return run(executor, [adding(tmp_path / "log", "first")], endless(stop))

    results, items = side_by_side(launched, never_resting)
    assert [result["rank"] for result in results] == [0, 1]
    assert sorted(item["i"] for item in items) == list(range(len(items)))
