"""A training of nothing, held in its middle for as long as a file is there."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from clipmill.pipeline.dataset import Context, Inputs, Task
from clipmill.pipeline.stage import DatasetStage, location

STEPS = 8


@dataclass(frozen=True, kw_only=True)
class Steps(DatasetStage):
    """Nothing, in eight steps; the fourth does not end while the file `gate` is there."""

    gate: str = location()

    version = 1
    determinism = "exact"
    gives = ("model",)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        ctx.say("training")
        ctx.map(partial(train, Path(self.gate)), [0])


def train(gate: Path, item: int, task: Task) -> Mapping[str, Any]:
    for step in range(STEPS):
        task.worker.tell(step, STEPS, "steps", loss=4.0 - step)
        while step == STEPS // 2 and gate.exists():
            time.sleep(0.02)
            task.worker.tell(step, STEPS, "steps", loss=4.0 - step)
    return {"steps": STEPS}
