"""Byte-identical images across the whole pool."""

from dataclasses import dataclass

import pyarrow as pa

from metadata.schema import (
    DUPLICATE_OF,
    POSITION,
    REASON,
    REASON_TYPE,
    SHA256,
    SHARD,
    UID,
)
from pipeline.dataset import Context, Inputs
from pipeline.stage import DatasetStage


@dataclass(frozen=True, kw_only=True)
class ExactDuplicate(DatasetStage):
    """Uid of the equal image that stays; null for that image itself and without a sha256.

    Source: none needed; equal SHA-256 is taken as equal bytes.
    Error: keeps the least uid of each set, which is the best sample by no score. Where a uid
    repeats with equal bytes, the first in the pool's order stays and the others name their own uid.
    """

    version = 1
    determinism = "exact"
    reads = (SHA256,)
    writes = (DUPLICATE_OF,)
    reasons = ("no_sha256",)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        assert inputs.rows is not None  # the plan gives rows to a stage that takes them
        by_digest = ctx.shuffle(inputs.rows, key=SHA256.name)  # equal digests meet
        ctx.restore(ctx.map_shards(name_keeper, by_digest))  # home: the pool's shards and order


def name_keeper(partition: pa.Table) -> pa.Table:
    """duplicate_of and reason of every row; the order of rows and partitions does not matter."""
    import polars as pl

    identity = [
        UID.name,
        SHARD.name,
        POSITION.name,
    ]  # of a repeated uid too, one row stays
    rows = pl.DataFrame(partition.select([*identity, SHA256.name])).with_row_index("row")
    first = rows.sort(identity).unique(SHA256.name, keep="first", maintain_order=True)
    keeper = first.select(SHA256.name, keeper=UID.name, keeper_row="row")
    out = rows.join(keeper, on=SHA256.name, how="left", maintain_order="left").select(
        keeper=pl.when(pl.col("row") != pl.col("keeper_row")).then("keeper"),  # nulls never join
        reason=pl.when(pl.col(SHA256.name).is_null()).then(pl.lit("no_sha256")),
    )
    out = out.to_arrow()
    return pa.table(
        {
            **{name: partition[name] for name in identity},
            DUPLICATE_OF.name: out["keeper"].cast(pa.binary()).cast(DUPLICATE_OF.dtype),
            REASON.name: out["reason"].cast(pa.string()).cast(REASON_TYPE),
        }
    )
