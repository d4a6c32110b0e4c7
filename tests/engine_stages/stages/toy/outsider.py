"""A copy of a file from outside the run."""

import hashlib
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from clipmill.pipeline.dataset import Context, Inputs, Task
from clipmill.pipeline.stage import DatasetStage, location


@dataclass(frozen=True, kw_only=True)
class Outsider(DatasetStage):
    """out/copy.txt: the file as it was."""

    path: str = location("")

    version = 1
    determinism = "exact"
    gives = ("data",)

    def outside(self) -> str:
        return hashlib.sha256(Path(self.path).read_bytes()).hexdigest()

    def run(self, inputs: Inputs, ctx: Context) -> None:
        ctx.map(partial(copy, self.path), [0])


def copy(path: str, item: int, task: Task) -> dict[str, Any]:
    held = task.worker.scratch / "copy.txt"
    shutil.copy(path, held)
    task.put_file(held.name, held)
    return {}
