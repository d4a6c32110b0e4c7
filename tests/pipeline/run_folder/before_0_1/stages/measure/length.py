"""How long a caption is."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import REASON, TEXT, Column
from clipmill.pipeline.stage import RowStage

LENGTH = Column("length", pa.int64(), "0 up", "How many characters a caption has.")


@dataclass(frozen=True, kw_only=True)
class Length(RowStage):
    """How many characters a caption has."""

    version = 1
    determinism = "exact"
    reads = (TEXT,)
    writes = (LENGTH,)

    def open(self, worker):
        return measured


def measured(batch):
    """The length of each caption."""
    length = pc.cast(pc.utf8_length(batch["text"]), "int64")
    none = pa.nulls(batch.num_rows, pa.string()).dictionary_encode()
    return pa.table({"length": length, REASON.name: none})
