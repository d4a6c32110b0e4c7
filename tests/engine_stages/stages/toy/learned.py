"""A training of a few steps over the numbers, which is made once for whoever asks."""

import json
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from clipmill.metadata.fingerprint import digest
from clipmill.metadata.schema import Column
from clipmill.pipeline.dataset import Context, Inputs, Put, Task
from clipmill.pipeline.stage import DatasetStage

NUMBER = Column("number", pa.int64(), "", "Any number.")


@dataclass(frozen=True, kw_only=True)
class Learned(DatasetStage):
    """out/model.json: half the sum of the numbers for each step, from a checkpoint on."""

    steps: int = 3

    version = 1
    determinism = "exact"
    gives = ("model",)
    reads = (NUMBER,)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        shards = range(len(inputs.rows))
        total = sum(sum(inputs.rows.table(i)[NUMBER.name].to_pylist()) for i in shards)
        ctx.map(partial(learn, total), [self.steps])


def learn(total: int, steps: int, task: Task) -> dict[str, Any]:
    return task.once(digest([total, steps]), partial(train, total, steps, task))


def train(total: int, steps: int, task: Task, put: Put) -> dict[str, Any]:
    checkpoints = task.checkpoints("it")
    begun, path = checkpoints.newest() or (0, None)
    weight = json.loads(path.read_text())["weight"] if path else 0
    state = task.worker.scratch / "state.json"
    for step in range(begun, steps):
        weight = (weight + total) // 2
        state.write_text(json.dumps({"weight": weight}))
        checkpoints.put(step + 1, state)
    state.write_text(json.dumps({"weight": weight}))
    put("model.json", state)
    return {"weight": weight}
