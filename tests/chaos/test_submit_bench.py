"""A bench's recipe submitted to two Ray nodes, one lost in mid-training: the digits of one here."""

import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from clipmill.pipeline.cli import main
from tests.chaos.test_own_ray import children, one_of
from tests.chaos.test_submit import (
    User,
    free_ports,
    outcome,
    ray_folder,
    started,
    started_head,
    wait,
)
from tests.pipeline.bench.conftest import run_of, tasks_of

pytestmark = [pytest.mark.soak(cpu_s=100), pytest.mark.timeout(600)]

SETS = ("batch_size=8", "samples_seen=320", "warmup_steps=1", "checkpoint_steps=5")
COST = ["seconds", "samples_per_s"]
GUEST = {"entrypoint": "sleep 600", "entrypoint_num_cpus": 1}  # has the head's one CPU


def bench(place: Path, name: str, *more: str) -> None:
    sets = (word for one in SETS for word in ("--set", one))
    arms = (f"long={place}/run:long", "--tasks", f"{place}/tasks", "--seeds", "1")
    code = main(["bench", *arms, *sets, "--out", str(place / name), "--workers", "0", *more])
    assert code == 0


def scores(out: Path) -> list[dict]:
    return pq.read_table(out / "leaderboard.parquet").drop_columns(COST).to_pylist()


def models(out: Path) -> set[str]:
    """The keys of what was trained: of rows, settings and seed."""
    return {path.parts[-3] for path in out.glob("once/*/*/model.safetensors")}


def test_a_bench_that_is_submitted_and_loses_a_node_has_the_same_digits(tmp_path):
    run_of(tmp_path, rows=60)
    tasks_of(tmp_path / "tasks")
    there = tmp_path / "there"
    bench(tmp_path, "there", "--estimate")
    with ray_folder() as folder, ExitStack() as stack:
        (port,) = free_ports(1)
        head = started_head(stack, folder, port, 1)
        while not head.get("nodes?view=hostNameList")["data"]["hostNameList"]:
            time.sleep(0.5)  # it has not met itself
        guest = head.get("api/jobs/", GUEST)["submission_id"]
        while head.get(f"api/jobs/{guest}")["status"] == "PENDING":
            time.sleep(0.2)
        (agent,) = free_ports(1)
        # Of its own folder: a node unpacks what is sent anew, under the feet of one that shares it.
        options = f"--address 127.0.0.1:{port} --num-cpus 1 --temp-dir {folder}/2"
        second = started(stack, folder, "2", f"{options} --dashboard-agent-listen-port {agent}")
        to = ("--out", str(there), "--address", head.address)
        job = User(head, tmp_path).begin("submit", str(there / "bench.yaml"), *to)
        stack.callback(job.kill)
        while not any(there.glob("stages/*/calls-*/checkpoints/*/*")):
            wait(job, 0.05)
            assert job.poll() is None, outcome(job)
        os.kill(one_of(children(second.pid), "raylet"), signal.SIGKILL)
        trained = models(there)
        head.get(f"api/jobs/{guest}/stop", {})
        code, output = outcome(job, 400)
    assert code == 0, output
    bench(tmp_path, "there")  # finds all done
    bench(tmp_path, "here")
    assert trained < models(there) == models(tmp_path / "here")
    assert scores(there) == scores(tmp_path / "here")
