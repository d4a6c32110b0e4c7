"""`run.table`: 4 columns of 3 stages, beside Polars reading the same files alone.

    python -m tests.benchmarks.table [ROWS ...]

`polars` knows the files of each stage, that all of them are whole and that rows stand in one order:
it scans them, joins the columns side by side and filters by `keep`. `table` finds that out from the
records, reads passes and masks as they are, and checks every page against its checksum. Both give
equal frames, uids as hex digits.

`first` holds each file to its digest; `table` has done so in this process. Small sizes are a shard
or ten: what a query costs whatever it reads.

Aim: at 1,000,000 rows no more than 1.5 times the time of Polars (0.67x).
Measured (2026-11-27, EPYC, 2 cores, load 8 to 12, CPU time, medians of three processes): 1,000,000
rows 0.89x, of those kept 0.83x; the first time 0.68x, of those kept 0.68x.
"""

import sys
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.ledger.small_files import sha256_of
from pipeline.ledger.table import table
from pipeline.run_folder.state import RunState
from tests.benchmarks.side_by_side import side_by_side
from tests.benchmarks.toy import plan_of, run_toy, scratch

SIZES = (10_000, 100_000, 1_000_000)
ROUNDS = 7
WORDS = np.array([*("a", "the", "of", "red", "dog", "cat", "old", "tree", "on", "photo")])
COLUMNS = ["url", "text", "caption_words", "keep"]


def main() -> None:
    for rows in [int(size) for size in sys.argv[1:]] or SIZES:
        with scratch() as folder:
            state = run(folder, rows)
            for name, stage, by_hand in (
                ("all rows", "pool", whole(state)),
                ("rows kept", "subset", whole(state).filter(pl.col("keep"))),
            ):
                mine = table(state, stage, COLUMNS)

                def first(mine=mine):
                    sha256_of.cache_clear()
                    mine.collect()

                assert mine.collect().equals(by_hand.collect())  # a fast wrong answer is none
                print(f"{rows:,} rows, {name}")
                rivals = {"polars": by_hand.collect, "table": mine.collect, "first": first}
                for clock in (perf_counter, process_time):
                    print(f"by {clock.__name__}")
                    side_by_side(rows, ROUNDS, clock, **rivals)


def run(folder: Path, rows: int) -> RunState:
    """A run of links, their captions counted, half of them kept."""
    random = np.random.default_rng(0)
    count = random.integers(3, 15, rows)
    words = np.split(WORDS[random.integers(0, len(WORDS), count.sum())], count.cumsum()[:-1])
    pool = {
        "url": [f"https://site-{i % 2000}.test/pictures/{i:09}.jpg" for i in range(rows)],
        "text": [" ".join(some) for some in words],
    }
    pq.write_table(pa.table(pool), folder / "pool.parquet")
    stages = {
        "pool": {"uses": "ingest.url_list", "path": str(folder / "pool.parquet")},
        "caption": {"uses": "annotate.caption", "from": "pool"},
        "subset": {"uses": "select.where", "from": "caption", "where": "caption_words >= 9"},
    }
    return run_toy(plan_of(stages), folder / "run", workers=2)


def whole(state: RunState) -> pl.LazyFrame:
    """The columns of each stage's files, in the order of their shards, side by side."""

    def files(stage: str) -> list[str]:
        at = state.stages[stage]
        return [f"{at.folder.path}/{at.shards[shard].files[0]}" for shard in sorted(at.shards)]

    parts = [
        pl.scan_parquet(files("pool")).select(pl.col("uid").bin.encode("hex"), "url", "text"),
        pl.scan_parquet(files("caption")).select("caption_words"),
        pl.scan_parquet(files("subset")).select("keep"),
    ]
    return pl.concat(parts, how="horizontal")


if __name__ == "__main__":
    main()
