"""The pool on which `stages --check` runs a stage: the rows of one Parquet file."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.metadata.schema import REASON, REASON_TYPE, UID, Column
from clipmill.pipeline.dataset import Context, Inputs, Task
from clipmill.pipeline.stage import DatasetStage


@dataclass(frozen=True, kw_only=True)
class Rows(DatasetStage):
    """Every column of the file; no row has a reason.

    Error: none.
    Example: {path: rows.parquet, shard_rows: 40}
    """

    path: str  # a Parquet file with a column `uid`
    shard_rows: int  # rows of a shard

    version = 1
    determinism = "exact"
    takes = ()

    @property
    def writes(self) -> tuple[Column, ...]:
        fields = [field for field in pq.read_schema(self.path) if field.name != UID.name]
        return tuple(Column(field.name, field.type, "", "Made up.") for field in fields)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        starts = range(0, pq.read_metadata(self.path).num_rows, self.shard_rows)
        sources = [{"path": self.path, "at": start, "digest": f"{start}"} for start in starts]
        ctx.create_shards(read, [source | {"rows": self.shard_rows} for source in sources])


def read(source: dict[str, Any], task: Task) -> Iterator[pa.Table]:
    rows = pq.read_table(source["path"]).slice(source["at"], source["rows"])
    yield rows.append_column(REASON.name, pa.nulls(len(rows), REASON_TYPE))
