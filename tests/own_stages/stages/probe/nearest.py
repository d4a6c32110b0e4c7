"""A stage for tests of what is said of near rows: they are named in its input."""

from dataclasses import dataclass

import pyarrow as pa

from clipmill.metadata.schema import Column
from clipmill.pipeline.stage import RowFunction, RowStage, Worker


@dataclass(frozen=True, kw_only=True)
class Nearest(RowStage):
    """earlier_uid, from 32 hex digits in `near`, and earlier_cosine; null where there is no `near`.

    Error: none.
    """

    version = 1
    determinism = "exact"
    reads = (
        Column("near", pa.string(), "hex", "The uid of the row that is near."),
        Column("cosine", pa.float32(), "cosine", "How near."),
    )
    writes = (
        Column("earlier_cosine", pa.float32(), "cosine", "As read.", better="low", alike=0.95),
        Column("earlier_uid", pa.binary(16), "uid", "As read.", names="neighbour"),
    )
    reasons = ("no_near",)

    def open(self, worker: Worker) -> RowFunction:
        return nearest


def nearest(batch: pa.Table) -> pa.Table:
    uid = [near and bytes.fromhex(near) for near in batch["near"].to_pylist()]
    reason = [None if near else "no_near" for near in uid]
    return pa.table(
        {
            "earlier_cosine": batch["cosine"],
            "earlier_uid": pa.array(uid, pa.binary(16)),
            "reason": pa.array(reason, pa.string()).dictionary_encode(),
        }
    )
