"""Work that only a processor does: a fixed number of hashes."""

import hashlib
from dataclasses import dataclass

import pyarrow as pa

from metadata.schema import Column
from pipeline.stage import RowFunction, RowStage, Worker


@dataclass(frozen=True, kw_only=True)
class Spin(RowStage):
    """The number again, after `hashes` rounds of SHA-256 a batch.

    Error: none.
    """

    hashes: int

    version = 1
    determinism = "exact"
    reads = (Column("number", pa.int64(), "number", "Read."),)
    writes = (Column("spun", pa.int64(), "number", "Written."),)

    def open(self, worker: Worker) -> RowFunction:
        return self.spun

    def spun(self, batch: pa.Table) -> pa.Table:
        spin(self.hashes)
        none = pa.nulls(len(batch), pa.string()).dictionary_encode()
        return pa.table({"spun": batch["number"], "reason": none})


def spin(hashes: int) -> bytes:
    """The work itself."""
    return hashlib.pbkdf2_hmac("sha256", b"clip", b"mill", hashes)
