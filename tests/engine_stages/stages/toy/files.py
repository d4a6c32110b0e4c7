"""A file for every shard, as an export writes them."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from clipmill.metadata.schema import Column
from clipmill.pipeline.dataset import Context, Inputs, Shards, Task
from clipmill.pipeline.stage import DatasetStage, location

NUMBER = Column("number", pa.int64(), "", "Any number.")


@dataclass(frozen=True, kw_only=True)
class Files(DatasetStage):
    """out/<shard>.txt: its numbers, one a line. With `mistake` it divides by zero first."""

    mistake: bool = location(False)

    version = 1
    determinism = "exact"
    gives = ("data",)
    reads = (NUMBER,)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        if self.mistake:
            1 / 0  # noqa: B018
        ctx.map(partial(write, inputs.rows), list(range(len(inputs.rows))))


def write(rows: Shards, shard: int, task: Task) -> dict[str, Any]:
    path = task.worker.scratch / f"{shard}.txt"
    path.write_text("".join(f"{n}\n" for n in rows.table(shard)[NUMBER.name].to_pylist()))
    task.put_file(path.name, path)
    return {"file": path.name}
