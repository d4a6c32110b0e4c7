"""A Ray node lost in the midst of a shuffle: others do what it had in hand, to the same bytes."""

import os
import threading
import time
from pathlib import Path

import pytest
import ray

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.executors import Executor
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.executors.ray import RayExecutor
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.pipeline.progress import Lines
from tests.engine_stages.harness import meaning, toy_stages, write_pool
from tests.pipeline.engine.programs import store
from tests.pipeline.executors.test_ray_nodes import nodes_with
from tests.pipeline.executors.work import note, notes, until

pytestmark = pytest.mark.soak

SHARDS, NODES = 9, 3


@pytest.fixture
def nodes(monkeypatch):
    """Three nodes with a CPU each; the last one will be lost."""
    with nodes_with(monkeypatch, *[1] * NODES) as (made, nodes):
        yield made, nodes[-1]


def shuffled(inputs, ctx):
    """Rows to partitions and home again, in two shuffles."""
    store(ctx.shuffle(ctx.map_shards(read_somewhere, inputs.rows), "number", 5), ctx)


def read_somewhere(rows):
    """The rows; the node that will be lost waits for that with its second shard in hand, once all
    have begun, and so long do the others."""
    if "CLIPMILL_TEST_LOG" not in os.environ:
        return rows
    log, doomed = Path(os.environ["CLIPMILL_TEST_LOG"]), os.environ["CLIPMILL_TEST_DOOMED"]
    here, shard = ray.get_runtime_context().get_node_id(), rows["shard"][0].as_py()
    begun_here = [line for line in notes(log, "shard") if line["node"] == here]
    note(log, shard=shard, node=here)
    if here == doomed and begun_here:
        until(lambda: len({line["node"] for line in notes(log, "shard")}) == NODES)
        note(log, waits=shard)
        time.sleep(600)
    if here != doomed:
        until(lambda: notes(log, "waits"))
    return rows


def test_units_of_a_lost_node_are_done_by_the_others(nodes, tmp_path, monkeypatch):
    cluster, last = nodes
    pool, log = write_pool(tmp_path / "pool", [4] * SHARDS), tmp_path / "log"
    numbers = {"uses": "toy.numbers", "path": str(pool)}
    it = {"uses": "toy.program", "from": "numbers", "function": f"{__name__}:shuffled"}

    def run(executor: Executor, folder: Path):
        stages = {"numbers": numbers, "it": it}
        plan = make_plan(Recipe(name="it", path="it", seed=0, stages=stages))
        try:
            outcome = run_plan(plan, Storage(str(folder)), executor, Lines())
        finally:
            executor.close()
        assert outcome.complete, outcome.stopped
        return meaning(Storage(str(folder)))

    def lose_the_last():
        until(lambda: notes(log, "waits"))
        cluster.remove_node(last, allow_graceful=False)

    with toy_stages():
        expected = run(LocalExecutor(0), tmp_path / "calm")
        log.touch()
        monkeypatch.setenv("CLIPMILL_TEST_LOG", str(log))
        monkeypatch.setenv("CLIPMILL_TEST_DOOMED", last.node_id)
        killer = threading.Thread(target=lose_the_last)
        killer.start()
        found = run(RayExecutor(address=cluster.address), tmp_path / "run")
        killer.join()
    assert found == expected
    (held,) = (line["waits"] for line in notes(log, "waits"))
    read_by = [line["node"] for line in notes(log, "shard") if line["shard"] == held]
    assert read_by[0] == last.node_id
    assert len(read_by) == 2
    assert read_by[1] != last.node_id
    assert len({line["node"] for line in notes(log, "shard")}) == NODES
    assert sorted({line["shard"] for line in notes(log, "shard")}) == list(range(SHARDS))
    assert len(notes(log, "shard")) == SHARDS + 1, "no other was read again"
