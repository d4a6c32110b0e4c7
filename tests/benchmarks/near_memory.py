"""What the report holds of a pool for its copies and leaks: the rows that are some, not all.

    python -m tests.benchmarks.near_memory [full | ROWS ...]    300,000; full: to three million

Pools in shards of 50,000, first each with the same 20,000 copies of captions, then with a copy in
eight rows, and 2,000 rows that lie in an evaluation set; `over` is the most memory that a process
held above what it had as it began, pandas included, which pyarrow imports where it is installed.

Aim: memory that does not grow with the rows.
Measured (2026-11-28, two shared EPYC cores), 0.3, 1 and 3 million rows: copies 32, 31 and 29 MB,
0.10, 0.34 and 0.77 s of CPU; leaks 27, 25 and 27 MB, 0.03, 0.07 and 0.18 s. With the columns of all
rows held: 101, 198 and 513 MB, 0.35, 0.78 and 2.30 s; 59, 85 and 163 MB, 0.24, 0.40 and 0.53 s.
Later that day, 0.3, 1, 3 and 6 million rows, when all copies were held: 32, 29, 29 and 31 MB, 0.10,
0.29, 0.93 and 1.60 s; with a copy in eight rows 46, 81, 151 and 269 MB, 0.15, 0.51, 1.86 and 5.36
s. Since they lie on scratch disk, 1, 3, 6 and 12 million rows: 60, 63, 64 and 56 MB, 0.21, 0.69,
1.28 and 2.62 s; with a copy in eight 127, 191, 191 and 184 MB, 0.40, 1.08, 2.01 and 6.03 s.
"""

import json
import os
import sys
from pathlib import Path
from time import process_time

import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.pipeline.ledger.findings.duplicates import duplicates
from clipmill.pipeline.ledger.findings.leaks import leaks
from clipmill.pipeline.run_folder.state import latest
from tests.benchmarks.explore import peak_mb
from tests.benchmarks.side_by_side import begin
from tests.benchmarks.toy import module, plan_of, run_toy, scratch

SHARD_ROWS = 50_000
COPIES, LEAKED = 20_000, 2_000
CALLS = {"duplicates": duplicates, "leaks": leaks}


def main(*sizes: int) -> str:
    most_mb = {}
    for share in (None, 8):
        for rows in sizes:
            with scratch() as folder:
                copies = make_run(folder, rows, rows // share if share else COPIES)
                expected = {"duplicates": copies, "leaks": LEAKED}
                for name in CALLS:
                    asked = module("tests.benchmarks.near_memory", name, folder / "run")
                    found, cpu_s, over_mb = asked
                    print(
                        f"{rows:>9,} rows, {name:<10} {cpu_s:6.2f} s of CPU,"
                        f" {over_mb:4.0f} MB over: {found:,} found",
                        flush=True,
                    )
                    assert found == expected[name]
                    most_mb[share, name] = over_mb
    return f"copies {most_mb[None, 'duplicates']:.0f} MB, leaks {most_mb[None, 'leaks']:.0f} MB"


def make_run(folder: Path, rows: int, copies: int) -> int:
    """Every so many-th row has the caption of the row before it, or that of a sample; returns how
    many are copies."""
    every = rows // copies
    text = [f"caption {row - (row % every == 1)} of a picture" for row in range(rows)]
    step = rows // LEAKED
    samples = [f"one sample by name {number}" for number in range(LEAKED)]
    text[7 : step * LEAKED : step] = samples
    url = [f"https://site.test/{row}.jpg" for row in range(rows)]
    pq.write_table(pa.table({"url": url, "text": text}), folder / "pool.parquet")
    task = folder / "samples"
    task.mkdir()
    keys = [str(number) for number in range(LEAKED)]
    pq.write_table(pa.table({"key": keys, "text": samples}), task / "task.parquet")
    plan = plan_of(
        {
            "pool": {
                "uses": "ingest.url_list",
                "path": str(folder / "pool.parquet"),
                "shard_rows": SHARD_ROWS,
            },
            "same": {"uses": "dedup.exact", "from": "pool", "by": "caption"},
            "near": {
                "uses": "dedup.against",
                "from": "pool",
                "compare": "caption",
                "tasks": str(task),
            },
        }
    )
    run_toy(plan, folder / "run", workers=2)
    return rows - len(set(text))


def ask(name: str, run: str) -> None:
    """Prints how many rows are found, CPU seconds and megabytes."""
    state = latest(run)
    before_mb, begun = peak_mb(os.getpid()), process_time()
    (found,) = CALLS[name](state)
    rows = found.duplicates if name == "duplicates" else found.reached
    print(json.dumps([rows, process_time() - begun, peak_mb(os.getpid()) - before_mb]))


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] in CALLS:
        ask(sys.argv[1], sys.argv[2])
    else:
        begin(main, quick=(300_000,), full=(300_000, 1_000_000, 3_000_000))
