"""`funnel` of runs of many shards on a disk: by threads of one process, and by processes.

    python -m tests.benchmarks.funnel_shards [full | SHARDS ...]    1,000; full: to 9,000

A pool, a row stage and a select over both, in shards of 200 rows, so that what is left is what a
shard costs. From ahead.MANY shards on a process for each CPU reads them, which takes a second to
start and is sent the records of the run, 0.3 KB a shard and stage. Both count the same.

Aim: with two CPUs less wall time by processes from ahead.MANY shards on.
Measured (2026-11-28, two shared EPYC cores, on a disk in memory), 1,000, 3,000 and 9,000 shards:
threads 3.2, 9.0 and 21.6 s, processes 3.1, 6.5 and 17.8 s: 1.0x, 1.4x and 1.2x as fast. More than
two cores were not there.
"""

from pathlib import Path
from time import perf_counter

from clipmill.metadata.storage import Storage
from clipmill.pipeline.ledger.answer import as_json
from clipmill.pipeline.ledger.rows import ahead
from clipmill.pipeline.ledger.selection.funnel import funnel
from clipmill.pipeline.run_folder.state import RunState
from tests.benchmarks.side_by_side import begin
from tests.benchmarks.toy import plan_of, run_toy, scratch

STAGES = {
    "affine": {"uses": "toy.affine", "from": "pool"},
    "best": {
        "uses": "select.where",
        "from": ["pool", "affine"],
        "where": "affine > 200000 AND number < 900000",
    },
}


def main(*sizes: int) -> str:
    for shards in sizes:
        with scratch() as folder:
            ratio = measure(folder, shards)
    return f"processes {ratio:.2f}x threads at {shards:,} shards"


def measure(folder: Path, shards: int) -> float:
    """How many times as fast processes are as threads."""
    pool = {"uses": "toy.rows", "shards": shards, "shard_rows": 200}
    plan = plan_of({"pool": pool, **STAGES})
    run_toy(plan, folder, 2)
    state = RunState(plan, Storage(str(folder)))
    spent, found = {}, []
    for how, many in (("threads", shards + 1), ("processes", 0)) * 2:
        ahead.MANY = many
        begun = perf_counter()
        found.append(as_json(funnel(state)))
        spent[how] = min(perf_counter() - begun, spent.get(how, float("inf")))
    assert all(one == found[0] for one in found)
    said = ", ".join(
        f"{how} {took:5.1f} s, {took / shards * 1e3:.2f} ms" for how, took in spent.items()
    )
    print(f"{shards:>6,} shards: {said} a shard", flush=True)
    return spent["threads"] / spent["processes"]


if __name__ == "__main__":
    begin(main, quick=(1_000,), full=(1_000, 3_000, 9_000))
