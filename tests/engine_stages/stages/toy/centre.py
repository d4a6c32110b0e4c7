"""How far a number lies from where a slow walk to the mean ends."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import REASON, REASON_TYPE, Column
from clipmill.pipeline.dataset import Context, Inputs, Shards, State, Task
from clipmill.pipeline.stage import DatasetStage, location

DISTANCE = Column("distance", pa.int64(), "", "Number less the centre.")
NUMBER = Column("number", pa.int64(), "", "Any number.")


@dataclass(frozen=True, kw_only=True)
class Centre(DatasetStage):
    """Number less the centre, and out/centre.txt. Each round takes it half way to the mean.

    An iteration, with a reduce in each step, over rows kept on scratch. `log` is a file that
    gets a line for each step begun; where it names round `fail_at`, and has not yet seen it, the
    step fails.
    """

    rounds: int = 3
    log: str = location("")
    fail_at: int = location(-1)

    version = 1
    determinism = "exact"
    gives = ("rows", "model", "centroids")
    reads = (NUMBER,)
    writes = (DISTANCE,)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        start = {"centre": np.int64(0)}
        rows = ctx.keep_local(inputs.rows)
        end = ctx.iterate(start, partial(self.step, ctx, rows), self.rounds)
        ctx.map(put_centre, [int(end["centre"])])
        ctx.restore(ctx.map_shards(partial(distance, int(end["centre"])), rows))

    def step(self, ctx: Context, rows: Shards, state: State, number: int) -> State:
        if self.log:
            began = Path(self.log).read_text().split() if Path(self.log).exists() else []
            with Path(self.log).open("a") as file:
                file.write(f"{number}\n")
            if number == self.fail_at and str(number) not in began:
                raise OSError("out of luck")
        sums = ctx.reduce(total, rows, add)
        mean = int(sums["total"]) // max(1, int(sums["rows"]))
        return {"centre": np.int64((int(state["centre"]) + mean) // 2)}


def total(rows: pa.Table) -> State:
    number = rows[NUMBER.name].to_numpy()
    return {"total": np.int64(number.sum()), "rows": np.int64(len(number))}


def add(one: State, other: State) -> State:
    return {name: np.int64(one[name] + other[name]) for name in one}


def put_centre(centre: int, task: Task) -> dict[str, int]:
    path = task.worker.scratch / "centre.txt"
    path.write_text(str(centre))
    task.put_file(path.name, path)
    return {"centre": centre}


def distance(centre: int, rows: pa.Table) -> pa.Table:
    rows = rows.append_column(DISTANCE.name, pc.subtract(rows[NUMBER.name], centre))
    return rows.append_column(REASON.name, pa.nulls(len(rows), REASON_TYPE))
