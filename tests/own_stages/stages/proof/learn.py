"""A training in name only: it stores a loss curve, as train.clip does."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset import Context, Inputs
from pipeline.stage import DatasetStage


@dataclass(frozen=True, kw_only=True)
class Learn(DatasetStage):
    """A loss.parquet a seed: 100 steps from 5 down to 1.

    Error: none.
    """

    seeds: tuple[int, ...] = (0,)

    version = 1
    determinism = "exact"
    takes = ("rows", "data")
    gives = ("model",)
    artifacts = (("loss", "*loss.parquet"),)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        ctx.map(store, self.seeds)


def store(seed, task):
    with TemporaryDirectory(dir=task.worker.scratch) as folder:
        path = Path(folder, "loss.parquet")
        steps = range(100)
        curve = {"step": list(steps), "loss": [1 + 4 / (1 + step) for step in steps]}
        pq.write_table(pa.table(curve), path)
        task.put_file(f"seed-{seed}.loss.parquet", path)
    return {"seed": seed}
