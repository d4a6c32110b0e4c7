"""What `sweep` holds of a pool: all rows of a small one, a few shards of a large one.

    python -m tests.benchmarks.sweep_memory [full | ROWS ...]    300,000; full: to three million

Each sweep is a process of its own; `over` is the most memory that it held above what it had as it
began, pandas included, which pyarrow imports where it is installed. `held` has all rows at hand, as
pools of up to swept.HELD_ROWS rows are; `by shard` reads a large pool, once for its groups, once
for what it counts, and beside `top` two or three times more to find the cuts. Both say the same.

Aim: memory that does not grow with the rows.
Measured (2026-11-28, two shared EPYC cores), 0.3, 1 and 3 million rows in shards of 50,000: by
shard 126, 137 and 128 MB, beside `top` 127, 129 and 117 MB; held 143, 254 and 612 MB. CPU by shard
1.6 to 1.7 times that of all rows held, beside `top` 2.3 to 2.9 times.
"""

import hashlib
import json
import os
import sys
from time import process_time

from clipmill.pipeline.ledger.answer import as_json
from clipmill.pipeline.ledger.selection import counterfactual as swept
from clipmill.pipeline.ledger.selection.sweep import sweep
from clipmill.pipeline.run_folder.state import latest
from tests.benchmarks import explore
from tests.benchmarks.side_by_side import begin
from tests.benchmarks.toy import module, scratch

VARIED = {
    "where": ("good", "clip_score=0.10:0.40:0.02"),
    "beside top": ("best", "entropy=0.1:0.9:0.05"),
    "top": ("best", "top.fraction=0.1:0.9:0.05"),
}


def main(*sizes: int) -> str:
    for rows in sizes:
        with scratch() as folder:
            explore.write_pool(folder, rows)
            explore.make_run(folder)
            for name, (stage, vary) in VARIED.items():
                said = {
                    how: module("tests.benchmarks.sweep_memory", how, folder / "run", stage, vary)
                    for how in ("held", "by shard")
                }
                assert len({digest for digest, *_ in said.values()}) == 1
                for how, (_, cpu_s, over_mb) in said.items():
                    print(
                        f"{rows:>9,} rows, {name:<10} {how:<8} {cpu_s:6.2f} s of CPU,"
                        f" {over_mb:4.0f} MB over",
                        flush=True,
                    )
    held, by_shard = (said[how][2] for how in said)
    return f"{by_shard:.0f} MB by shard, {held:.0f} held, of {rows:,} rows"


def ask(how: str, run: str, stage: str, vary: str) -> None:
    """Prints what is said, as a digest, CPU seconds and megabytes."""
    swept.HELD_ROWS = 1 << 40 if how == "held" else 0
    state = latest(run)
    before_mb, begun = explore.peak_mb(os.getpid()), process_time()
    found = json.dumps(as_json(sweep(state, stage, vary)))
    digest = hashlib.sha256(found.encode()).hexdigest()
    print(json.dumps([digest, process_time() - begun, explore.peak_mb(os.getpid()) - before_mb]))


if __name__ == "__main__":
    if len(sys.argv) == 5:
        ask(*sys.argv[1:])
    else:
        begin(main, quick=(300_000,), full=(300_000, 1_000_000, 3_000_000))
