"""A bench on two Ray nodes, one of which is lost in mid-training: the same digits as here."""

import threading
from pathlib import Path

import pyarrow as pa
import pytest
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from metadata.storage import Storage
from pipeline.bench.board import board
from pipeline.bench.prepare import prepared
from pipeline.bench.spec import Asked, bench_of
from pipeline.bench.tables import table
from pipeline.engine.run import run_plan
from pipeline.executors import Executor
from pipeline.executors.local import LocalExecutor
from pipeline.executors.ray import RayExecutor
from pipeline.progress import watcher
from tests.pipeline.bench.conftest import run_of, tasks_of
from tests.pipeline.executors.test_contract import until
from tests.pipeline.executors.test_ray_nodes import Guest, cluster

pytestmark = pytest.mark.chaos

__all__ = ["cluster"]  # a fixture
SETS = ("batch_size=8", "samples_seen=640", "warmup_steps=1", "checkpoint_steps=5")
COST = ["seconds", "samples_per_s"]


def benched(place: Path, out: Path, executor: Executor) -> pa.Table:
    """The leaderboard but for its cost, the arms by name."""
    asked = Asked(arms=(f"long={place}/run:long",), tasks=str(place / "tasks"), sets=SETS, seeds=1)
    folder = Storage(str(out))
    with watcher() as watch:
        made = prepared(bench_of(asked, None, str(out)), folder, executor, watch)
        outcome = run_plan(made.plan, folder, executor, watch)
    assert outcome.complete, outcome.stopped
    return table(board(made, outcome.state)).drop_columns(COST).sort_by([("arm", "ascending")])


def test_a_bench_that_loses_a_node_has_the_same_digits(cluster, tmp_path):
    nodes, second = cluster
    run_of(tmp_path, rows=60)
    tasks_of(tmp_path / "tasks")
    here = benched(tmp_path, tmp_path / "here", LocalExecutor(0))
    out = tmp_path / "there"
    on_head = NodeAffinitySchedulingStrategy(nodes.head_node.node_id, soft=False)
    executor = RayExecutor(address=nodes.address)
    guests = [Guest.options(scheduling_strategy=on_head).remote() for _ in range(2)]
    ray.get([guest.ready.remote() for guest in guests])  # so trainings are on the second node
    lost: dict[str, int] = {}

    def lose_the_second():
        until(lambda: any(out.glob("stages/*/**/checkpoints/*/*")))
        lost["trained"] = len(list(out.glob("once/*/*/model.safetensors")))
        nodes.remove_node(second, allow_graceful=False)
        for guest in guests:
            ray.kill(guest)

    killer = threading.Thread(target=lose_the_second)
    killer.start()
    try:
        there = benched(tmp_path, out, executor)
    finally:
        killer.join()
        executor.close()
    models = {
        name: list((tmp_path / name).glob("once/*/*/model.safetensors"))
        for name in ("here", "there")
    }
    assert lost["trained"] < len(models["there"])
    digests = [sorted(path.parts[-3] for path in found) for found in models.values()]
    assert digests[0] == digests[1]
    assert there.equals(here)
