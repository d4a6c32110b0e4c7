"""What an item on Ray costs its driver, with up to 1,000 actors and 100,000 items: nothing else.

    python -m tests.benchmarks.ray_dispatch [full | ITEMS ...]    10,000; full: to 100,000

Actors are objects of this process that answer at once, and the driver hears one answer a turn, the
worst case (tests/pipeline/executors/fake_actors.py). What Ray itself takes for a call is not in it.

Aim: CPU time that grows as the items, and hangs on the actors only as they start.
Measured (2026-11-27, EPYC, 2 shared cores at load 10), us an item: 13, 14 and 23 with 10, 100 and
1,000 actors for 10,000 items, 20 for 30,000 and 21 for 100,000 (2.1 s). Before 27 November, when
the driver looked at every actor for every item: 19, 65 and 492 for 10,000.
"""

from functools import partial
from itertools import product
from time import process_time

from clipmill.pipeline.executors import Step
from clipmill.pipeline.stage import Resources
from tests.benchmarks.side_by_side import begin
from tests.pipeline.executors.fake_actors import fake_executor

ACTORS = (10, 100, 1_000)


def negated(item: int) -> int:
    return -item


def main(*sizes: int) -> str:
    each_us = []
    for items, actors in product(sizes, ACTORS):
        with fake_executor(actors) as (executor, cluster):
            step = Step(name="it", start=partial(partial, negated), resources=Resources())
            begun = process_time()
            total = sum(executor.stream([step], range(items)))
            spent_s = process_time() - begun
            each_us.append(spent_s / items * 1e6)
            assert total == -sum(range(items))
            assert cluster.placed >= actors
        print(
            f"{actors:>5,} actors, {items:>7,} items: {spent_s:7.2f} s of CPU,"
            f" {each_us[-1]:6.0f} us an item",
            flush=True,
        )
    few, *_, many = each_us[-len(ACTORS) :]
    return f"{few:.0f} us an item by 10 actors, {many:.0f} by 1,000"


if __name__ == "__main__":
    begin(main, quick=(10_000,), full=(10_000, 30_000, 100_000))
