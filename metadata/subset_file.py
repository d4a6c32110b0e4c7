"""Subset files: the rows of an export that count, how often, with which weight and texts.

Parquet, with a row for each that counts:

    uid          16 bytes
    shard        int32, and
    position     int32: the row's place in the pool; both or neither, for pools whose uids repeat
    repeats      int32, how often it counts; once if left out
    loss_weight  float32; the export's if left out or null
    texts        TEXT_LIST; the export's if left out or null

No key stands twice: `repeats` says how often a row counts.
"""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.metadata.schema import LOSS_WEIGHT, POSITION, REPEATS, SHARD, TEXTS, UID

COLUMNS = (UID, SHARD, POSITION, REPEATS, LOSS_WEIGHT, TEXTS)
NULLABLE = (LOSS_WEIGHT, TEXTS)


def write_subset(path: Path, tables: Iterable[pa.Table]) -> int:
    """Writes tables with the first table's columns; returns their rows.

    Raises ValueError if a column is unknown, of another type, or lacks a required value.
    """
    rows = 0
    writer: pq.ParquetWriter | None = None
    try:
        for table in tables:
            check_subset(table.schema)
            check_values(table)
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
            rows += len(table)
        if writer is None:
            raise ValueError("a subset of no table; write one without rows")
    finally:
        if writer is not None:
            writer.close()
    return rows


def read_subset(file: pq.ParquetFile) -> pa.Table:
    """Reads all rows of a subset file; ValueError if it is none."""
    check_subset(file.schema_arrow)
    table = file.read()
    check_values(table)
    return table


def check_subset(schema: pa.Schema) -> None:
    """Raises ValueError if a schema is not that of a subset."""
    known = {column.name: column.dtype for column in COLUMNS}
    for field in schema:
        if field.name not in known:
            raise ValueError(f"a column '{field.name}'; a subset file has {', '.join(known)}")
        if field.type != known[field.name]:
            raise ValueError(
                f"column '{field.name}' holds {field.type}, and {known[field.name]} belongs there"
            )
    if UID.name not in schema.names:
        raise ValueError(f"no column 'uid'; a subset file has {', '.join(known)}")
    if (SHARD.name in schema.names) != (POSITION.name in schema.names):
        raise ValueError("one of `shard` and `position` without the other")


def check_values(table: pa.Table) -> None:
    """Raises ValueError if a required value is missing, or a weight or count is negative or NaN."""
    for column in COLUMNS:
        if column in NULLABLE or column.name not in table.column_names:
            continue
        if nulls := table[column.name].null_count:
            raise ValueError(f"{nulls} rows without `{column.name}`")
    for name in {REPEATS.name, LOSS_WEIGHT.name} & set(table.column_names):
        value_N = table[name].drop_null().to_numpy()
        if len(value_N) and not value_N.min() >= 0:  # NaN fails, too
            raise ValueError(f"a `{name}` of {value_N.min()}; 0 is the least")
