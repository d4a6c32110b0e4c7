"""A number and a number that lies in a file outside the run."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import REASON, REASON_TYPE, Column
from clipmill.pipeline.dataset import Context, Inputs
from clipmill.pipeline.stage import DatasetStage, location

NUMBER = Column("number", pa.int64(), "", "Any number.")
SHIFTED = Column("shifted", pa.int64(), "", "The sum of both.")


@dataclass(frozen=True, kw_only=True)
class Shifted(DatasetStage):
    """Number plus the file's."""

    path: str = location("")

    version = 1
    determinism = "exact"
    reads = (NUMBER,)
    writes = (SHIFTED,)

    def outside(self) -> str:
        return Path(self.path).read_text()

    def run(self, inputs: Inputs, ctx: Context) -> None:
        by = int(Path(self.path).read_text())
        ctx.restore(ctx.map_shards(partial(shifted, by), inputs.rows))


def shifted(by: int, rows: pa.Table) -> pa.Table:
    rows = rows.append_column(SHIFTED.name, pc.add(rows[NUMBER.name], by))
    return rows.append_column(REASON.name, pa.nulls(len(rows), REASON_TYPE))
