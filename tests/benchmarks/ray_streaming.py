"""Empty items through Ray Data and RayExecutor, and a worker of each that is killed.

    python -m tests.benchmarks.ray_streaming [full | ITEMS]    1,000; full: 10,000

Prints seconds to the first and to the last result for each, then how each takes a killed worker.
The head of pipeline/executors/ray.py has the figures that decided.
"""

import logging
import os
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from time import perf_counter

import ray
import ray.data

from clipmill.pipeline.executors import Step
from clipmill.pipeline.executors.ray import RayExecutor
from clipmill.pipeline.stage import Resources
from tests.benchmarks.side_by_side import begin

ONE_CPU = Resources(cpus=1, memory_gb=0.1)
OTHER_CPU = Resources(cpus=1, memory_gb=0.2)
KILLER = 50


class Same:
    """The item itself; item 50 kills its worker once where there is a log of the tries."""

    def __init__(self, log: Path | None = None):
        self.log = log

    def __call__(self, item):
        if self.log:
            with self.log.open("a") as file:
                file.write(f"{item['i']}\n")
            if item["i"] == KILLER and self.log.read_text().split().count(str(KILLER)) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        return item


def data(items: list[dict], profiles: int, log: Path | None = None) -> Iterator[dict]:
    """One name a block, as a shard is a unit of work and retry."""
    stream = ray.data.from_items(items, override_num_blocks=len(items))
    for profile in range(profiles):  # memory tells them apart, or Ray Data would fuse them
        stream = stream.map(
            Same,
            fn_constructor_args=(log,),
            concurrency=(1, 2) if profiles == 1 else 1,
            num_cpus=1,
            memory=(profile + 1) * 10**8,
        )
    return stream.iter_rows()


def core(
    executor: RayExecutor, items: list[dict], profiles: int, log: Path | None = None
) -> Iterator[dict]:
    resources = (ONE_CPU, OTHER_CPU)[:profiles]
    steps = [Step(name="same", start=partial(Same, log), resources=r) for r in resources]
    yield from executor.stream(steps, items)
    # The next rival needs the CPUs, and each pays for its workers' start.
    executor._ask(lambda: executor._end_workers_of(None))


def main(count: int) -> str:
    executor = RayExecutor(workers=2)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rivals = {"Ray Data": data, "RayExecutor": partial(core, executor)}
    taken = {}
    for profiles, n in ((1, count // 10), (1, count), (2, count // 10)):
        items = [{"i": i} for i in range(n)]
        for name, run in rivals.items():
            start, first_s, seen = perf_counter(), 0.0, []
            for item in run(items, profiles):
                first_s = first_s or perf_counter() - start
                seen.append(item["i"])
            assert sorted(seen) == list(range(n))
            last_s = perf_counter() - start
            taken[name, profiles, n] = last_s
            print(f"{name:<12}{n:>7} items, profiles {profiles}: {first_s:6.2f} {last_s:7.2f} s")
    for name, run in rivals.items():
        with tempfile.TemporaryDirectory() as folder:
            log, start = Path(folder, "tries"), perf_counter()
            seen = [item["i"] for item in run([{"i": i} for i in range(100)], 1, log)]
            again = {i: n for i, n in Counter(log.read_text().split()).items() if n > 1}
        print(f"{name:<12}    100 items, one kill: {perf_counter() - start:.2f} s, tries {again}")
        assert sorted(seen) == list(range(100))
    executor.close()
    ratio = taken["Ray Data", 1, count] / taken["RayExecutor", 1, count]
    return f"{ratio:.1f}x Ray Data for {count:,} items"


if __name__ == "__main__":
    begin(main, quick=(1_000,), full=(10_000,))
