"""How far each number lies from the centre that another stage left in a file."""

from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.outputs import Outputs
from clipmill.metadata.schema import REASON, REASON_TYPE, Column
from clipmill.metadata.storage import Storage
from clipmill.pipeline.dataset import Context, Inputs
from clipmill.pipeline.stage import DatasetStage

NUMBER = Column("number", pa.int64(), "", "Any number.")
APART = Column("apart", pa.int64(), "", "Number less the centre.")
MADE_BY = Column("made_by", pa.string(), "", "Which model made `number`.")


@dataclass(frozen=True, kw_only=True)
class Measured(DatasetStage):
    """Number less the centre in the folder of `centroids`, and what made the numbers."""

    centroids: str

    version = 1
    determinism = "exact"
    takes = ("rows", "centroids")
    reads = (NUMBER,)
    writes = (APART, MADE_BY)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        assert inputs.centroids is not None
        centre = int(Outputs(Storage(inputs.centroids)).read("centre.txt"))
        made_by = inputs.model_of.get(NUMBER.name)
        ctx.restore(ctx.map_shards(partial(less, centre, made_by), inputs.rows))


def less(centre: int, made_by: str | None, shard: pa.Table) -> pa.Table:
    apart = pc.subtract(shard[NUMBER.name], centre)
    table = shard.drop_columns([NUMBER.name]).append_column(APART.name, apart)
    table = table.append_column(MADE_BY.name, pa.array([made_by] * len(shard), pa.string()))
    return table.append_column(REASON.name, pa.nulls(len(shard), REASON_TYPE))
