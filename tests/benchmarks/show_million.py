"""`clipmill show` on a run of a million rows, as a whole process; and `why` by a caption.

    python -m tests.benchmarks.show_million

Beside each a script that does the least with Polars: it scans the files of the pool, all cores, and
takes as many rows by the same column.

Measured (2026-11-27, EPYC, 2 cores, load 14 to 25): CPU 0.67 to 0.77 s and at most 219 MB for each,
by hand 0.22 s and 189 MB; of wall time the least were 0.62 to 1.00 s, by hand 0.21 s.
"""

import sys
from pathlib import Path
from statistics import median

from metadata.storage import Storage
from pipeline.planning.plan import Plan
from pipeline.run_folder.state import RunState
from tests.benchmarks.toy import Spent, clipmill, plan_of, run_toy, scratch, spend

SHARDS, ROWS, ROUNDS = 20, 50_000, 3
STAGES = {
    "pool": {"uses": "toy.rows", "shards": SHARDS, "shard_rows": ROWS},
    "subset": {"uses": "select.where", "from": "pool", "where": "number >= 500000"},
}
BY_HAND = """
import sys, polars as pl
rows = pl.scan_parquet(sys.argv[1] + "/0*.parquet").select("uid", "number", "text")
print(rows.top_k(20, by="number").collect(engine="streaming"))
"""


def main() -> None:
    with scratch() as folder:
        run = str(folder / "run")
        plan = plan_of(STAGES)
        run_toy(plan, folder / "run", workers=1)
        pool = str(folder / "run" / plan.stages["pool"].folder)
        asked = {
            "sorted": ("show", "pool", "--sort", "number", "--desc"),
            "sample": ("show", "subset"),
            "where": ("show", "pool", "--where", "text LIKE '%boat%dog%boat%'"),
            "near cut": ("show", "subset", "--near-cut"),
            "why": ("why", a_caption(plan, folder / "run")),
        }
        rivals = {
            "by hand": lambda: spend(sys.executable, "-c", BY_HAND, pool),
            **{
                name: lambda words=words: clipmill(*words, "--run", run)
                for name, words in asked.items()
            },
        }
        spent: dict[str, list[Spent]] = {name: [] for name in rivals}
        for _ in range(ROUNDS):
            for name, rival in rivals.items():
                spent[name].append(rival())
    print(f"{SHARDS * ROWS:,} rows in {SHARDS} shards")
    for name, times in spent.items():
        wall_s, cpu_s = sorted(t.wall_s for t in times), sorted(t.cpu_s for t in times)
        print(
            f"{name:<10} wall {median(wall_s):.2f} s (least {wall_s[0]:.2f})"
            f"   CPU {median(cpu_s):.2f} s   at most {max(t.peak_mb for t in times):,.0f} MB"
        )


def a_caption(plan: Plan, run: Path) -> str:
    """That of a row of the last shard."""
    state = RunState(plan, Storage(str(run)))
    return str(state.cell("pool", SHARDS - 1, ROWS // 2, ["text"])["text"])


if __name__ == "__main__":
    main()
