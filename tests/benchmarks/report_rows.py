"""`clipmill report` of pools of some million rows: seconds and memory, by its slope.

    python -m tests.benchmarks.report_rows [full | ROWS ...]    100,000; full: to three million

A pool in DataComp's form, with the best third by score and near copies by equal captions, a tenth
of the rows, in shards of 10,000. The command is a process of its own; `start` is `clipmill status`
of the same run, taken off no figure. Of 200 shards and more a process for each CPU counts the
rows, and the page is the same by one, which is asserted.

Aim: memory that does not grow with the rows, and time that grows no faster than they do.
Measured (2026-11-28, two shared EPYC cores, on a disk in memory), 0.3, 1 and 3 million rows: 3.3,
5.8 and 12.0 s, 3.7, 6.8 and 18.0 s of CPU, 287, 293 and 292 MB.
"""

import hashlib
import json
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.pipeline.ledger.selection import survey
from clipmill.pipeline.report.build import report
from clipmill.pipeline.run_folder.state import latest
from tests.benchmarks.side_by_side import begin
from tests.benchmarks.toy import Spent, clipmill, module, scratch

FILE_ROWS = 100_000
RECIPE = """
stages:
  pool: {{uses: ingest.datacomp, path: {pool}, scores: true}}
  best:
    uses: select.where
    from: pool
    where: original_width >= 300 AND original_height >= 300
    top: {{column: clip_l14_similarity_score, fraction: 0.3}}
  same: {{uses: dedup.exact, from: pool, columns: [text]}}
"""


def main(*sizes: int) -> str:
    for rows in sizes:
        with scratch() as folder:
            spent = measure(rows, folder)
    return f"{spent.wall_s:.1f} s and {spent.peak_mb:.0f} MB of {rows:,} rows"


def measure(rows: int, folder: Path) -> Spent:
    (folder / "select.yaml").write_text(RECIPE.format(pool=folder / "metadata"), encoding="utf-8")
    write_pool(folder / "metadata", rows)
    run, page = str(folder / "run"), folder / "report.html"
    clipmill("run", str(folder / "select.yaml"), "--out", run, "--workers", "2")
    start = clipmill("status", "--run", run)
    spent = clipmill("report", "--run", run, "--out", str(page))
    assert module("tests.benchmarks.report_rows", "alone", run) == digest(page.read_text("utf-8"))
    print(
        f"{rows:>9,} rows: {spent.wall_s:5.1f} s, {spent.cpu_s:5.1f} s of CPU,"
        f" {spent.peak_mb:4.0f} MB   start {start.wall_s:.1f} s, {start.peak_mb:.0f} MB",
        flush=True,
    )
    return spent


def write_pool(folder: Path, rows: int) -> None:
    """One caption in ten is another's; half of the sides are 300 pixels or more."""
    folder.mkdir()
    for start in range(0, rows, FILE_ROWS):
        random = np.random.default_rng(start)
        size = min(FILE_ROWS, rows - start)
        number_N = np.where(random.random(size) < 0.1, 7, start) + np.arange(size)
        pool = {
            "uid": pa.array([random.bytes(16).hex() for _ in range(size)]),
            "url": pa.array([f"https://site-{n % 2000}.test/{n}.jpg" for n in number_N]),
            "text": pa.array([f"a photo of number {n}, taken from afar" for n in number_N]),
            "original_width": random.integers(100, 700, size),
            "original_height": random.integers(100, 700, size),
            "sha256": pa.array([random.bytes(32).hex() for _ in range(size)]),
        }
        for score in ("clip_b32_similarity_score", "clip_l14_similarity_score"):
            pool[score] = random.normal(0.24, 0.05, size).astype(np.float32)
        path = folder / f"{start // FILE_ROWS:08d}.parquet"
        pq.write_table(pa.table(pool), path, row_group_size=10_000)


def alone(run: str) -> None:
    """Prints the digest of the page that one process makes."""
    with mock.patch.object(survey, "WORTH", sys.maxsize):
        print(json.dumps(digest(report(latest(run)))))


def digest(page: str) -> str:
    return hashlib.sha256(page.encode()).hexdigest()


if __name__ == "__main__":
    if sys.argv[1:2] == ["alone"]:
        alone(sys.argv[2])
    else:
        begin(main, quick=(100_000,), full=(300_000, 1_000_000, 3_000_000))
