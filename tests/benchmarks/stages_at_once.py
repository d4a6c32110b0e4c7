"""Two dataset stages that sleep, beside a row stage, against one of them alone.

    python -m tests.benchmarks.stages_at_once

Each sleeps 5 s in a worker; the row stage takes numbers of two shards. Start, manifests and lock
count on both sides. Ideal: a ratio of 1.
Measured (2026-11-26, EPYC, two shared cores): idle 0.96x (0.96 to 0.98); at load 6 to 8 0.89x (0.85
to 0.95), and 0.67x (0.64 to 0.70) when stages ran one after another.
"""

from functools import partial
from pathlib import Path

from tests.benchmarks.side_by_side import side_by_side
from tests.benchmarks.toy import plan_of, run_toy, scratch

SLEEP_S, WORKERS, ROUNDS = 5.0, 3, 3
POOL = {"uses": "toy.rows", "shards": 2, "shard_rows": 1000}
PAUSE = {"uses": "toy.pause", "from": "pool", "seconds": SLEEP_S}
ROWS = {"uses": "toy.affine", "from": "pool"}


def ran(stages: dict, folder: Path) -> None:
    """One run into a folder of its own."""
    run_toy(plan_of(stages), folder / str(len(list(folder.iterdir()))), WORKERS)


def main() -> None:
    with scratch() as folder:
        side_by_side(
            rows=1,
            rounds=ROUNDS,
            alone=partial(ran, {"pool": POOL, "one": PAUSE}, folder),
            all_three=partial(
                ran, {"pool": POOL, "one": PAUSE, "two": PAUSE, "rows": ROWS}, folder
            ),
        )


if __name__ == "__main__":
    main()
