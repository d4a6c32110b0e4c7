"""Two Ray nodes: ranks go on from their checkpoint as one is lost; GPUs wait for no CPU."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from itertools import count, takewhile
from pathlib import Path

import numpy as np
import pytest
import ray
from ray._private import ray_constants
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.executors.ray import RayExecutor
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.stage import Resources
from tests.pipeline.conftest import Ran
from tests.pipeline.engine.programs import store
from tests.pipeline.executors import work
from tests.pipeline.executors.work import note, notes, until

pytestmark = pytest.mark.chaos

NODE = {
    "node_ip_address": "127.0.0.1",
    "include_dashboard": False,
    "object_store_memory": 80 * 2**20,
    "memory": 8 * 2**30,
}
STEPS = 6


@contextmanager
def nodes_with(monkeypatch, *cpus: int, gpus: int = 0):
    """A cluster of nodes with so many CPUs each, which keep to loopback, and its nodes."""
    node = NODE | {"num_gpus": gpus}
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    made = Cluster(initialize_head=True, head_node_args={**node, "num_cpus": cpus[0]})
    yield made, [made.head_node, *(made.add_node(**node, num_cpus=each) for each in cpus[1:])]
    made.shutdown()


@pytest.fixture
def cluster(monkeypatch):
    """A node with two CPUs, and one with one that will be lost."""
    with nodes_with(monkeypatch, 2, 1) as (made, nodes):
        yield made, nodes[-1]


@pytest.mark.soak(cpu_s=20)
def test_where_rays_object_store_is_full_items_pass_all_the_same(monkeypatch):
    with (
        nodes_with(monkeypatch, 2) as (cluster, _),
        closing(RayExecutor(address=cluster.address)) as executor,
    ):
        held = [ray.get(ray.put(np.zeros(25 << 20, np.uint8))) for _ in range(3)]  # of 80 MB
        items = [{"i": number, "bytes": bytes([number]) * (2 << 20)} for number in range(60)]
        done = list(executor.stream([work.step(dict)], items))
        del held
    assert sorted(done, key=lambda item: item["i"]) == items


def rest_a_little(item):
    time.sleep(0.2)
    return item


def sums_over_ranks(inputs, ctx):
    result = ctx.launch(sum_over_ranks, 2)
    store(inputs.rows, ctx, lambda n: n * 0 + result["sum"])


def sum_over_ranks(rank, task):
    """What both ranks add in six steps; at the fourth, rank 1 waits for the loss of its node."""
    import torch
    import torch.distributed as dist

    log = Path(os.environ["CLIPMILL_TEST_LOG"])
    dist.init_process_group("gloo", init_method=rank.rendezvous, rank=rank.rank, world_size=rank.of)
    checkpoints = task.checkpoints("sum")
    begun, state = checkpoints.newest() or (0, None)
    total = int(state.read_text()) if state else 0
    note(log, rank=rank.rank, begun=begun, node=ray.get_runtime_context().get_node_id())
    for step in range(begun, STEPS):
        if step == 3 and rank.rank == 1 and not begun:
            note(log, waits=step)
            time.sleep(600)
        mine = torch.tensor([(rank.rank + 1) * 10**step])
        dist.all_reduce(mine)
        total += int(mine)
        if rank.rank == 0:
            path = task.worker.scratch / "state"
            path.write_text(str(total))
            checkpoints.put(step + 1, path)
    dist.destroy_process_group()
    return {"sum": total}


@ray.remote(num_cpus=1)
class Guest:
    """Takes a CPU, so that the ranks need both nodes."""

    def ready(self): ...


@pytest.mark.drawn(one_in=3, cpu_s=30)
def test_ranks_of_a_lost_node_begin_again_on_what_is_left(cluster, engine, tmp_path, monkeypatch):
    nodes, second = cluster
    log = tmp_path / "log"
    monkeypatch.setenv("CLIPMILL_TEST_LOG", str(log))
    name = f"{__name__}:sums_over_ranks"
    plan = engine.plan(f"  it: {{uses: toy.program, from: numbers, function: '{name}'}}\n")
    executor = RayExecutor(address=nodes.address)
    on_head = NodeAffinitySchedulingStrategy(nodes.head_node.node_id, soft=False)
    guest = Guest.options(scheduling_strategy=on_head).remote()
    ray.get(guest.ready.remote())

    def lose_the_second():
        until(lambda: log.exists() and notes(log, "waits"))
        ray.kill(guest)
        nodes.remove_node(second, allow_graceful=False)

    killer = threading.Thread(target=lose_the_second)
    killer.start()
    try:
        outcome = run_plan(plan, Storage(str(tmp_path / "run")), executor, Lines(), (), False)
    finally:
        killer.join()
        executor.close()
    assert outcome.complete, outcome.stopped
    begun = {(line["rank"], line["begun"]): line["node"] for line in notes(log, "begun")}
    assert begun.keys() == {(0, 0), (1, 0), (0, 3), (1, 3)}
    assert begun[0, 0] != begun[1, 0], "on two nodes"
    assert begun[0, 3] == begun[1, 3] == nodes.head_node.node_id
    assert set(Ran(outcome, tmp_path).column("it", "value")) == {3 * 111_111}


def test_a_gpu_gets_its_worker_where_others_hold_all_cpus(monkeypatch, tmp_path):
    """Two nodes with a GPU each, and a stream that never rests: both GPUs work side by side."""
    busy, stop = work.step(rest_a_little), threading.Event()
    resources = Resources(gpus=1, memory_gb=0.1)
    embed = work.step(partial(work.stop_at, tmp_path, "embed", 2), resources)
    with nodes_with(monkeypatch, 2, 2, gpus=1) as (made, _), ThreadPoolExecutor(1) as thread:
        executor = RayExecutor(address=made.address)
        try:
            endless = takewhile(lambda _: not stop.is_set(), count())
            resting = thread.submit(lambda: list(executor.stream([busy], endless)))
            until(lambda: sum(found.workers for found in executor.placed()) == 4)
            assert list(executor.stream([embed], range(2))) == ["embed", "embed"]
        finally:
            stop.set()
            resting.result()
            executor.close()
