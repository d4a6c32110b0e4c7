"""Sleeping stages on 1, 2 and 4 raylets: the share of the ideal; and of the time that GPUs work.

    python -m tests.benchmarks.raylets [full | SHARDS]    15 shards of a raylet; full: 120

Each raylet has one CPU, and later one GPU that nobody looks at; a shard sleeps a second, so that
two cores carry four of them. Counted is from the first shard's begin to the last one's end; what
comes before, with the pool, is named. The GPUs' part: `decode` on four CPUs a raylet sleeps 1.6 s a
shard, `embed` on its GPU .5 s, so decoding has a quarter to spare; busy are the GPUs while `embed`
sleeps, from the first shard on, and from the moment that all four have their worker.

Aims: .95 of ideal with 4 raylets, GPUs busy 90 %.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray.cluster_utils import Cluster

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.executors.ray import RayExecutor
from clipmill.pipeline.run_folder.live import Watcher
from tests.benchmarks.side_by_side import begin
from tests.benchmarks.toy import plan_of, scratch

SLEEP_S = 1.0
DECODE_S, EMBED_S, DECODERS = 1.6, 0.5, 4
ROWS = 10  # of a shard


def main(shards: int) -> str:
    took = {}
    for raylets in (1, 2, 4):
        with scratch() as folder, cluster(raylets, cpus=1) as address:
            log = folder / "log"
            sleeping = {"uses": "toy.asleep", "from": "pool", "seconds": SLEEP_S, "log": str(log)}
            before_s = run(address, shards * raylets, {"asleep": sleeping}, folder)
            took[raylets] = span_of(times(log, "asleep")) / shards
        ideal = SLEEP_S / took[raylets]
        print(
            f"{raylets} raylets, {shards * raylets} shards: {took[raylets]:.3f} s a shard of each,"
            f" {ideal:.3f} of ideal, {took[1] / took[raylets]:.3f} of one raylet's;"
            f" {before_s:.1f} s until the first",
            flush=True,
        )
    busy = gpus_busy(shards)
    return f"{took[1] / took[4]:.2f} of 4 x 1 raylet; 4 GPUs busy {busy:.0%}"


def gpus_busy(shards: int) -> float:
    """Returns the share of their time that four GPUs work, from the first batch to the last."""
    with scratch() as folder, cluster(4, cpus=DECODERS + 1, gpus=1) as address:
        log = str(folder / "log")
        stages = {
            "decode": {"uses": "toy.asleep", "from": "pool", "seconds": DECODE_S, "log": log},
            "embed": {
                **{"uses": "toy.asleep", "from": "decode", "seconds": EMBED_S, "log": log},
                **{"gpus": 1, "read": {"phash": "decode.slept"}},
            },
        }
        run(address, shards * 8, stages, folder)
        worked = times(Path(log), "embed")
    events = sorted([(began, 1) for began, _ in worked] + [(ended, -1) for _, ended in worked])
    at_work, all_s = 0, events[-1][0]
    for moment_s, change in events:
        at_work += change
        all_s = min(all_s, moment_s) if at_work == 4 else all_s
    later = [(max(began, all_s), ended) for began, ended in worked if ended > all_s]
    whole, busy = (
        sum(ended - began for began, ended in spans) / (4 * span_of(spans))
        for spans in (worked, later)
    )
    print(
        f"4 raylets with a GPU each, {shards * 8} shards: busy {whole:.3f}; {busy:.3f} once all had"
        f" a worker, {all_s - events[0][0]:.0f} s after the first",
        flush=True,
    )
    return busy


def run(address: str, shards: int, stages: dict[str, Any], folder: Path) -> float:
    """Runs the stages over a pool; returns the seconds until a stage's first shard began."""
    pool = {"uses": "toy.codes", "shards": shards, "shard_rows": ROWS}
    begun = time.time()
    executor = RayExecutor(address=address)
    try:
        run_folder = Storage(str(folder / "run"))
        outcome = run_plan(plan_of({"pool": pool, **stages}), run_folder, executor, Watcher())
    finally:
        executor.close()
    assert outcome.complete, outcome.stopped
    first, *_ = stages
    known = times(Path(stages[first]["log"]), first)
    assert len(known) == shards, "no shard twice"
    return min(began for began, _ in known) - begun


def times(log: Path, stage: str) -> list[tuple[float, float]]:
    """Returns the begin and end of each of a stage's batches, as the stage noted them."""
    lines = map(json.loads, log.read_text().splitlines())
    return [(line["began"], line["ended"]) for line in lines if line["stage"] == stage]


def span_of(spans: Sequence[tuple[float, float]]) -> float:
    return max(ended for _, ended in spans) - min(began for began, _ in spans)


@contextmanager
def cluster(raylets: int, cpus: int, gpus: int = 0) -> Iterator[str]:
    """Yields the address of raylets on loopback."""
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    node = {"num_cpus": cpus, "num_gpus": gpus, "object_store_memory": 80 * 2**20}
    node |= {"memory": 4 * 2**30, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=node)
    try:
        for _ in range(raylets - 1):
            made.add_node(**{k: v for k, v in node.items() if k != "include_dashboard"})
        yield made.address
    finally:
        with suppress(Exception):
            ray.shutdown()
        made.shutdown()


if __name__ == "__main__":
    begin(main, quick=(15,), full=(120,))
