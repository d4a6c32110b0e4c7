"""Shards of one Parquet row group, read as one and alone: python -m tests.benchmarks.row_groups

Alone, a shard decodes its row group from the first row, so a group of G shards is decoded G / 2
times over; together it is decoded once.
"""

import tempfile
from itertools import chain
from pathlib import Path
from time import process_time

import pyarrow as pa
import pyarrow.parquet as pq

from metadata.storage import Storage
from stages.ops.parquet_rows import Source, parquet_rows, scan_parquet
from tests.benchmarks.side_by_side import side_by_side

SHARD_ROWS = 10_000
COLUMNS = ["url", "text"]


def rows_of(storage: Storage, groups: list[list[Source]]) -> list[int]:
    """Rows of every source, read group by group."""
    return [
        sum(map(len, tables))
        for group in groups
        for tables in parquet_rows(storage, group, COLUMNS)
    ]


with tempfile.TemporaryDirectory() as folder:
    for shards in (5, 20, 80):
        rows = shards * SHARD_ROWS
        columns = {
            "url": [f"https://example.org/pictures/{row * 7919}.jpg" for row in range(rows)],
            "text": [f"a picture of number {row} among {rows}" for row in range(rows)],
        }
        path = Path(folder, f"{shards}.parquet")
        pq.write_table(pa.table(columns), path, row_group_size=rows)
        storage = Storage(folder)
        groups, _ = scan_parquet(storage, {"path": path.name, "digest": ""}, SHARD_ROWS)
        alone = [[source] for source in chain(*groups)]
        assert rows_of(storage, groups) == rows_of(storage, alone) == [SHARD_ROWS] * shards
        print(f"a row group of {shards} shards")
        side_by_side(
            rows,
            rounds=5,
            clock=process_time,
            alone=lambda storage=storage, alone=alone: rows_of(storage, alone),
            together=lambda storage=storage, groups=groups: rows_of(storage, groups),
        )
