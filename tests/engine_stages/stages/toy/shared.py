"""How many rows share a remainder."""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import REASON, REASON_TYPE, Column
from clipmill.pipeline.dataset import Context, Inputs
from clipmill.pipeline.stage import DatasetStage, location

SHARED = Column("shared", pa.int64(), "rows", "Rows of the pool with the same remainder.")
NUMBER = Column("number", pa.int64(), "", "Any number.")


@dataclass(frozen=True, kw_only=True)
class Shared(DatasetStage):
    """Rows of the pool whose number leaves the same remainder.

    A shuffle. While the file `crash` is there, the unit that sees a zero kills its process.
    """

    modulus: int = 5
    partitions: int | None = location(None)
    crash: str = location("")

    version = 1
    determinism = "exact"
    reads = (NUMBER,)
    writes = (SHARED,)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        rows = ctx.map_shards(partial(with_remainder, self.modulus, self.crash), inputs.rows)
        ctx.restore(ctx.map_shards(count, ctx.shuffle(rows, "remainder", self.partitions)))


def with_remainder(modulus: int, crash: str, rows: pa.Table) -> pa.Table:
    if crash and Path(crash).exists() and pc.any(pc.equal(rows[NUMBER.name], 0)).as_py():
        os.abort()
    number = rows[NUMBER.name].to_numpy()
    return rows.append_column("remainder", pa.array(number % modulus))


def count(partition: pa.Table) -> pa.Table:
    remainders = pl.DataFrame(partition.select(["remainder"]))
    shared = remainders.select(pl.len().over("remainder").cast(pl.Int64)).to_series().to_arrow()
    reason = pa.nulls(len(partition), REASON_TYPE)
    return partition.append_column(SHARED.name, shared).append_column(REASON.name, reason)
