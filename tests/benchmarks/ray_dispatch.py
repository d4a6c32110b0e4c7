"""What an item on Ray costs its driver, with up to 1,000 actors and 100,000 items: nothing else.

    python -m tests.benchmarks.ray_dispatch

Actors are objects of this process that answer at once, and the driver hears one answer a turn, the
worst case (tests/pipeline/executors/fake_actors.py). What Ray itself takes for a call is not in it.

Aim: CPU time that grows as the items, and hangs on the actors only as they start.
Measured (2026-11-27, EPYC, 2 shared cores at load 10), us an item: 13, 14 and 23 with 10, 100 and
1,000 actors for 10,000 items, 20 for 30,000 and 21 for 100,000 (2.1 s). Before 27 November, when
the driver looked at every actor for every item: 19, 65 and 492 for 10,000.
"""

import sys
from functools import partial
from time import process_time

from pipeline.executors import Step
from pipeline.stage import Resources
from tests.pipeline.executors.fake_actors import fake_executor

SIZES = ((10, 10_000), (100, 10_000), (1_000, 10_000), (1_000, 30_000), (1_000, 100_000))


def negated(item: int) -> int:
    return -item


def main() -> None:
    for actors, items in SIZES[: int(sys.argv[1])] if sys.argv[1:] else SIZES:
        with fake_executor(actors) as (executor, cluster):
            step = Step(name="it", start=partial(partial, negated), resources=Resources())
            begun = process_time()
            total = sum(executor.stream([step], range(items)))
            spent_s = process_time() - begun
            assert total == -sum(range(items))
            assert cluster.placed >= actors
        print(
            f"{actors:>5,} actors, {items:>7,} items: {spent_s:7.2f} s of CPU,"
            f" {spent_s / items * 1e6:6.0f} us an item",
            flush=True,
        )


if __name__ == "__main__":
    main()
