"""A training in name only: it stores a loss curve and a card, as train.clip does."""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.pipeline.dataset import Context, Inputs
from clipmill.pipeline.stage import DatasetStage


@dataclass(frozen=True, kw_only=True)
class Learn(DatasetStage):
    """A loss.parquet a seed: 100 steps from 5 down to 1; and a model.json, of ten epochs.

    Error: none.
    """

    seeds: tuple[int, ...] = (0,)
    rate: float = 0.001

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
        card = Path(folder, "model.json")
        card.write_text(json.dumps({"rows": 640, "batch_size": 64, "plan": {"steps": 100}}))
        task.put_file(f"seed-{seed}.model.json", card)
    return {"seed": seed}
