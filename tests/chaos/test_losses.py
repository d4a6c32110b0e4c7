"""Small shards whose nodes come and go, whose workers leak, or one of whose nodes has a full disk:
the bytes of a calm run, and little done twice."""

import json
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import Outcome, run_plan
from clipmill.pipeline.executors import Executor
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.executors.ray import RayExecutor
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.pipeline.progress import Lines
from tests.engine_stages.harness import meaning, toy_stages, write_pool
from tests.pipeline.executors.test_ray_nodes import NODE, nodes_with

KILL_S = 15.0


@dataclass
class Shards:
    """A stage over shards of one number each, in the mood that a run gives it."""

    folder: Path
    count: int

    def run(self, out: str, executor: Executor, **mood: object) -> Outcome:
        script, pool = self.folder / "mood.json", write_pool(self.folder / "pool", [self.count])
        script.write_text(json.dumps(mood))
        numbers = {"uses": "toy.numbers", "path": str(pool), "shard_rows": 1}
        copy = {"uses": "toy.moody", "from": "numbers", "script": str(script)}
        recipe = Recipe("it", "it", 0, {"numbers": numbers, "copy": copy})
        return run_plan(make_plan(recipe), Storage(out), executor, Lines())

    def calm(self) -> dict:
        """Returns what a calm run leaves."""
        out = self.folder / "calm"
        self.run(str(out), LocalExecutor(0))
        (self.folder / "mood.log").unlink()
        return meaning(Storage(str(out)))

    def redone(self) -> int:
        """Returns how often a shard was begun again."""
        begun = Counter((self.folder / "mood.log").read_text().split())
        assert len(begun) == self.count
        return begun.total() - self.count


@pytest.fixture
def shards(tmp_path, request) -> Iterator[Shards]:
    with toy_stages():
        yield Shards(tmp_path, request.param)


@pytest.mark.soak(cpu_s=80)
@pytest.mark.parametrize("shards", [1_000], indirect=True)
def test_nodes_come_and_go_and_each_costs_one_shard_at_most(
    shards, tmp_path, monkeypatch, capsys, record_property
):
    """A node of four is killed every 15 s, and another comes."""
    expected, lost, out = shards.calm(), [], str(tmp_path / "run")
    with (
        nodes_with(monkeypatch, 0, 1, 1, 1, 1) as (cluster, nodes),
        closing(RayExecutor(address=cluster.address)) as executor,
        ThreadPoolExecutor(1) as beside,  # Ray starts nodes in the main thread alone
    ):
        work = beside.submit(shards.run, out, executor, sleep=0.2)
        while not wait([work], KILL_S).done:
            lost.append(nodes.pop(1))
            cluster.remove_node(lost[-1], allow_graceful=False)
            nodes.append(cluster.add_node(**NODE, num_cpus=1))
        outcome = work.result()
    assert outcome.complete, outcome.stopped
    assert meaning(Storage(out)) == expected
    assert shards.redone() <= len(lost)
    said = capsys.readouterr().err
    named = [f"lost node {node.node_id[:8]} on " in said for node in lost]
    assert all(named[:-1]), said  # the last one may be lost as the run ends
    assert len(named) > 2
    record_property("tries", len(lost))
    print(f"{len(lost)} nodes lost, {shards.redone()} shards done again")


LEAK_MB, MOST_MB = 300, 3_000


@pytest.mark.soak(cpu_s=25)
@pytest.mark.parametrize("shards", [24], indirect=True)
@pytest.mark.parametrize("where", ["local", "ray"])
def test_a_leak_costs_workers_and_no_shard(where, shards, tmp_path, monkeypatch, record_property):
    """Ray watches the memory of the machine, we that of our workers."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    kilobytes = {name: int(rest.split()[0]) for name, rest in (it.split(":") for it in lines)}
    taken = kilobytes["MemTotal"] - kilobytes["MemAvailable"] + (MOST_MB << 10)
    monkeypatch.setenv("RAY_memory_usage_threshold", str(taken / kilobytes["MemTotal"]))
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "50")
    expected, out = shards.calm(), str(tmp_path / "run")
    with closing(LocalExecutor(2) if where == "local" else RayExecutor(workers=2)) as executor:
        if isinstance(executor, LocalExecutor):
            executor._most_bytes = MOST_MB << 20
        outcome = shards.run(out, executor, leak=LEAK_MB, sleep=0.3)
    assert outcome.complete, outcome.stopped
    assert meaning(Storage(out)) == expected
    assert shards.redone(), "no worker was ended: there is nothing to survive"
    record_property("tries", shards.redone())
    print(f"{where}: {shards.redone()} workers ended for memory")


@pytest.mark.soak(cpu_s=40)
@pytest.mark.parametrize("shards", [24], indirect=True)
def test_a_full_disk_of_one_node_stops_the_stage_and_is_named(shards, bucket, monkeypatch):
    """What is on its way to S3 lies on the node's own disk."""
    expected, out = shards.calm(), bucket.uri("one-full-disk")
    with nodes_with(monkeypatch, 1) as (cluster, _):
        cluster.add_node(**NODE, num_cpus=1, env_vars={"DISK_IS_FULL": "yes"})
        with closing(RayExecutor(address=cluster.address)) as executor:
            outcome = shards.run(out, executor, sleep=0.3, full="DISK_IS_FULL")
        found, where, do = outcome.stopped["copy"].args
        assert found == "the disk is full: No space left on device"
        assert f" on {socket.gethostname()}, stage 'copy'" in where
        assert do == "free space there, then run again: what is stored stays"
        assert outcome.state.stages["copy"].shards, "the other node stored some"
        with closing(RayExecutor(address=cluster.address)) as executor:
            again = shards.run(out, executor)
    assert again.complete, again.stopped
    assert meaning(Storage(out)) == expected
