"""`clipmill why UID` on a run of a million rows, as a whole process.

    python -m tests.benchmarks.why_million

Beside it a script that does the least by hand: it looks for the uid in the pool's files (scanned
with pyarrow's dataset, all cores) and prints that row. `why` starts, reads the recipe, scans four
stage folders, looks for the uid, reads one row group a stage and says where the row went.

Aim: less than 1 s.
Measured (2026-11-25, EPYC, 2 cores, load 1): 0.75 s of wall time (least 0.70), by hand 0.52 s
(least 0.46); CPU 0.86 and 0.69 s. Of four runs the medians lay between 0.75 and 1.01 s, the aim is
met in three.
"""

import json
import sys
from pathlib import Path
from statistics import median

from tests.benchmarks.toy import Spent, clipmill, plan_of, run_toy, scratch, spend

SHARDS, ROWS, ROUNDS = 20, 50_000, 7
STAGES = {
    "pool": {"uses": "toy.rows", "shards": SHARDS, "shard_rows": ROWS},
    "affine": {"uses": "toy.affine", "from": "pool"},
    "letters": {"uses": "toy.letters", "from": "affine"},
    "subset": {"uses": "select.where", "from": "letters", "where": "letters > 1000000"},
}
BY_HAND = """
import glob, sys
import pyarrow as pa, pyarrow.compute as pc, pyarrow.dataset as ds
pool = ds.dataset(sorted(glob.glob(sys.argv[1] + "/0*.parquet")))
uid = pa.scalar(bytes.fromhex(sys.argv[2]), pa.binary(16))
print(pool.to_table(filter=pc.field("uid") == uid).to_pylist())
"""


def main() -> None:
    with scratch() as folder:
        run = folder / "run"
        plan = plan_of(STAGES)
        state = run_toy(plan, run, workers=2)
        pool = run / plan.stages["pool"].folder
        uid = some_uid(pool, state.stages["pool"].shards[SHARDS - 1].files[0])
        rivals = {
            "by hand": lambda: spend(sys.executable, "-c", BY_HAND, str(pool), uid),
            "why": lambda: clipmill("why", uid, "--run", str(run), "--json"),
        }
        found = json.loads(rivals["why"]().out)
        assert found["uid"] == uid
        assert str(bytes.fromhex(uid)) in rivals["by hand"]().out
        spent: dict[str, list[Spent]] = {name: [] for name in rivals}
        for _ in range(ROUNDS):
            for name, rival in rivals.items():
                spent[name].append(rival())
    print(f"{SHARDS * ROWS:,} rows in {SHARDS} shards, {len(STAGES)} stages")
    for name, times in spent.items():
        wall_s, cpu_s = sorted(t.wall_s for t in times), sorted(t.cpu_s for t in times)
        print(
            f"{name:<10} wall {median(wall_s):.2f} s (least {wall_s[0]:.2f})"
            f"   CPU {median(cpu_s):.2f} s (least {cpu_s[0]:.2f})"
        )


def some_uid(pool: Path, file: str) -> str:
    """A uid of the last shard, which a search from the front reaches last."""
    import pyarrow.parquet as pq

    return pq.read_table(pool / file, columns=["uid"])["uid"][ROWS // 2].as_py().hex()


if __name__ == "__main__":
    main()
