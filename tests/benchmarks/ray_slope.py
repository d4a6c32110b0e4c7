"""Ray against the local executor on shards of a second, as the slope between 50 and 200 of them.

    python -m tests.benchmarks.ray_slope

Both carry the same items through one step on two workers; a shard waits one second, so the figure
is what an executor adds, start-up taken out by the slope. Ideal: 0.500 s a shard. Results are
checked equal. Aim: Ray at most 1.1 times local.
Measured (2026-11-25, EPYC, two shared cores, Ray 2.60): local 0.499 s a shard, Ray 0.495, ratio
0.99; 50 shards took 25.4 and 27.9 s, start-up in.
"""

import time
from functools import partial
from time import perf_counter

from pipeline.executors import Executor, Item, Step
from pipeline.executors.local import LocalExecutor
from pipeline.stage import Resources

FEW, MANY, SHARD_S, WORKERS = 50, 200, 1.0, 2


def waiting() -> partial[Item]:
    """The function of one item, as a worker opens it."""
    return partial(wait)


def wait(item: Item) -> Item:
    time.sleep(SHARD_S)
    return item | {"done": True}


def seconds(executor: Executor, count: int) -> float:
    """Wall time of so many items, results checked."""
    step = Step(name="wait", start=waiting, resources=Resources())
    began = perf_counter()
    done = sorted(item["shard"] for item in executor.stream([step], items(count)))
    spent = perf_counter() - began
    assert done == list(range(count))
    return spent


def items(count: int) -> list[Item]:
    return [{"shard": shard} for shard in range(count)]


def main() -> None:
    from pipeline.executors.ray import RayExecutor

    slopes = {}
    for name, executor in (
        ("local", LocalExecutor(WORKERS)),
        ("ray", RayExecutor(workers=WORKERS)),
    ):
        try:
            few, many = seconds(executor, FEW), seconds(executor, MANY)
        finally:
            executor.close()
        slopes[name] = (many - few) / (MANY - FEW)
        print(f"{name:<6} {FEW}: {few:.1f} s  {MANY}: {many:.1f} s  {slopes[name]:.3f} s a shard")
    print(f"ray / local {slopes['ray'] / slopes['local']:.3f}")


if __name__ == "__main__":
    main()
