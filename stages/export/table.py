"""Exports the rows as a table without pictures: one CSV or JSON Lines file."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from clipmill.metadata.outputs import digest_of
from clipmill.metadata.schema import CAPTION, IMAGE, REASON, REPEATS, TEXT, UID, Column
from clipmill.pipeline.dataset import Context, Inputs, Shards, Task
from clipmill.pipeline.stage import DatasetStage, NonEmpty, later
from clipmill.stages.export._columns import (
    IF_PRESENT,
    as_text,
    check_columns,
    json_text,
    with_hex_ids,
)
from clipmill.stages.export._documents import describe
from clipmill.stages.export._leaving import Dropped, Takes, summed, tally

BATCH_ROWS = 4096
PLAIN = (  # types that CSV can write as they are
    *(pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_null),
    *(pa.types.is_string, pa.types.is_large_string, pa.types.is_date, pa.types.is_timestamp),
)
Write = Callable[[pa.Table], None]


@dataclass(frozen=True, kw_only=True)
class Table(DatasetStage):
    """rows.csv or rows.jsonl: the kept rows in the pool's order, uid first, then the columns.

    `columns` lists them in order; by default the caption, and url, sizes, sha256, loss_weight and
    repeats if the pool has them. Incomplete rows are exported, too: a missing value is empty in
    CSV, null in JSON. Ids are hex digits. In CSV lists and structs are JSON; in JSON, NaN and
    infinity are null. No image is read.

    Error: float32 columns are written with the fewest digits that give them back, lists of float32
    as float64.
    Example: {after: [ingest.webdataset]}
    """

    format: Literal["csv", "jsonl"] = "csv"  # of the file: comma-separated, or JSON Lines
    columns: tuple[NonEmpty, ...] = ()  # `name` or `stage.name`; `caption` is the pool's `text`
    dropped: Dropped | None = later(None)  # export rows that a stage dropped, not the kept ones

    version = 1
    determinism = "exact"
    formats = ("csv", "jsonl")
    gives = ("data",)
    reasons = ("not_kept", "other_rows")

    def __post_init__(self) -> None:
        check_columns(self.columns, (UID, REASON))
        if IMAGE.name in self.columns:
            raise ValueError("`columns` names 'image', and a table holds no pictures")

    @property
    def takes_rows(self) -> Takes:
        return Takes(needs=(), dropped=self.dropped)

    @property
    def reads(self) -> tuple[Column | str, ...]:
        names = (TEXT.name if name == CAPTION.name else name for name in self.columns)
        return UID, *names, *self.takes_rows.reads

    @property
    def optional_reads(self) -> tuple[Column | str, ...]:
        default = () if self.columns else (TEXT, *IF_PRESENT)  # and `repeats`, which `Takes` reads
        return *default, *self.takes_rows.optional_reads

    def run(self, inputs: Inputs, ctx: Context) -> None:
        takes = self.takes_rows
        counting = partial(tally, inputs.rows.select(takes.tallied), takes, BATCH_ROWS)
        total = summed(ctx.map(counting, list(range(len(inputs.rows)))), takes)
        write = partial(write_table, inputs.rows, takes, self.columns)
        (file,) = ctx.map(write, [f"rows.{self.format}"])
        columns = file.pop("columns")
        files = [{**file, "rows": total["exported"]}]
        describe(ctx, self.format, total, columns, files, made_by=inputs.steps, **takes.about)


def write_table(
    rows: Shards, takes: Takes, columns: tuple[str, ...], name: str, task: Task
) -> dict[str, Any]:
    """Writes all shards in order, a batch at a time; returns the file and its columns."""
    path = task.worker.scratch / name
    stored: list[list[str]] = []
    with (csv if name.endswith(".csv") else jsonl)(path) as write:
        for shard in range(len(rows)):
            for batch in rows.batches(shard, BATCH_ROWS):
                exported_N, _ = takes(batch)
                table = listed(batch.filter(pa.array(exported_N)), takes.dropped, columns)
                stored = [[field.name, str(field.type)] for field in table.schema]
                write(table)
    sha256, size_bytes = digest_of(path), path.stat().st_size
    task.put_file(name, path, sha256)
    return {"file": name, "bytes": size_bytes, "sha256": sha256, "columns": stored}


def listed(batch: pa.Table, dropped: Dropped | None, columns: tuple[str, ...]) -> pa.Table:
    """Converts the rows to the table's columns: ids to text, dictionaries to their values."""
    present = [c.name for c in (*IF_PRESENT, REPEATS) if c.name in batch.column_names]
    default = [CAPTION.name, *present] if TEXT.name in batch.column_names else present
    out = {UID.name: batch[UID.name]}
    if dropped:
        out |= dropped.columns_of(batch)
    for name in columns or default:
        out[name] = batch[TEXT.name if name == CAPTION.name else name]
    for name, values in out.items():
        if pa.types.is_dictionary(values.type):
            out[name] = values.cast(values.type.value_type)
    return with_hex_ids(pa.table(out))


@contextmanager
def csv(path: Path) -> Iterator[Write]:
    """Yields a function that writes tables as CSV (RFC 4180, UTF-8), below a line of names."""
    writer: pa_csv.CSVWriter | None = None

    def write(table: pa.Table) -> None:
        nonlocal writer
        for i, field in enumerate(table.schema):
            if not any(is_plain(field.type) for is_plain in PLAIN):
                table = table.set_column(i, field.name, as_text(table[i]))
        writer = writer or pa_csv.CSVWriter(path, table.schema)
        writer.write_table(table)

    path.touch()
    try:
        yield write
    finally:
        if writer:
            writer.close()


@contextmanager
def jsonl(path: Path) -> Iterator[Write]:
    """Yields a function that writes tables as a JSON object a line."""
    with path.open("w", encoding="utf-8", newline="\n") as file:

        def write(table: pa.Table) -> None:
            for i, field in enumerate(table.schema):
                if pa.types.is_floating(field.type):
                    table = table.set_column(i, field.name, _shortest(table[i]))
            for row in table.to_pylist():
                file.write(json_text(row) + "\n")

        yield write


def _shortest(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Converts floats to float64 of as few digits (0.1, not 0.100000001); NaN, infinity to null."""
    values = pc.if_else(pc.is_finite(values), values, None)
    return (
        values if pa.types.is_float64(values.type) else values.cast(pa.string()).cast(pa.float64())
    )
