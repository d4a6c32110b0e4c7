"""What it costs a stage that stored bytes are checked: page checksums and digests, or none.

    python -m tests.benchmarks.checksums

`checked` is the engine as it is: pages are written with checksums, and verified where they are
read; a file of up to 256 kB is read whole and held to its digest. `unchecked` is the same engine
with all of that taken away. Shards of 10,000 rows, one process; CPU time of a whole run of the
stage, scans and records with it, as others share the cores.

Aim: at most 3 % of a stage's CPU (a ratio of 0.97).
Measured (2026-11-26, EPYC, 2 cores, idle, medians of 41 rounds): affine 0.98x (0.79 to 1.28),
select.where 0.98x (0.82 to 1.25), annotate.caption 0.99x (0.85 to 1.25): 1 to 2 % in the median,
and spreads that reach 1.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from time import process_time
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq

from metadata import parquet_file
from tests.benchmarks.side_by_side import side_by_side
from tests.benchmarks.toy import plan_of, run_toy, scratch

POOL = {"uses": "toy.rows", "shards": 20, "shard_rows": 10_000}
STAGES: dict[str, dict[str, Any]] = {
    "affine": {"uses": "toy.affine", "from": "pool"},
    "select": {
        "uses": "select.where",
        "from": "pool",
        "where": "number >= 0",
        "top": {"column": "number", "fraction": 0.3},
    },
    "caption": {"uses": "annotate.caption", "from": "pool"},
}


def main() -> None:
    for name, stage in STAGES.items():
        compare(name, stage)


def compare(name: str, stage: dict[str, Any]) -> None:
    """One stage, both ways."""
    plan = plan_of({"pool": POOL, name: stage})
    with scratch() as folder:

        def run() -> list[pa.Table]:
            state = run_toy(plan, folder, workers=0)
            files = [path for found in state.stages[name].shards.values() for path in found.files]
            stored = state.stages[name].folder
            tables = [pq.read_table(stored.locate(path)) for path in files]
            shutil.rmtree(stored.path)
            return tables

        def unchecked() -> list[pa.Table]:
            with nothing_checked():
                return run()

        assert run() == unchecked()  # a fast wrong answer is no result
        print(f"{name}:")
        rows = POOL["shards"] * POOL["shard_rows"]
        side_by_side(rows, 41, process_time, unchecked=unchecked, checked=run)


@contextmanager
def nothing_checked() -> Iterator[None]:
    """The engine as it would be without."""
    writer, file = pq.ParquetWriter, pq.ParquetFile

    def plain_writer(*arguments: Any, **settings: Any) -> pq.ParquetWriter:
        return writer(*arguments, **settings | {"write_page_checksum": False})

    def plain_file(*arguments: Any, **settings: Any) -> pq.ParquetFile:
        return file(*arguments, **settings | {"page_checksum_verification": False})

    with (
        mock.patch.object(pq, "ParquetWriter", plain_writer),
        mock.patch.object(pq, "ParquetFile", plain_file),
        mock.patch.object(parquet_file, "SMALL_BYTES", -1),
    ):
        yield


if __name__ == "__main__":
    main()
