"""A stage for tests of the engine: it gives a model, which is one number in a file, and notes."""

import json
from dataclasses import dataclass

from clipmill.metadata.schema import KEEP, TEXT
from clipmill.pipeline.dataset import Context, Inputs
from clipmill.pipeline.stage import DatasetStage


@dataclass(frozen=True, kw_only=True)
class Learn(DatasetStage):
    """model.txt: how many rows there are; notes.json: what it is told to say.

    Error: none.
    """

    rounds: int = 1
    folds: int = 1
    says: tuple[str, ...] = ()

    version = 1
    determinism = "exact"
    gives = ("model",)
    reads_roots = True
    artifacts = (("notes", "notes.json"),)
    reads = (TEXT,)
    optional_reads = (KEEP,)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        counts = [inputs.rows.rows(shard) for shard in range(len(inputs.rows))]
        files = {"model.txt": str(sum(counts)), "notes.json": json.dumps({"notes": self.says})}
        ctx.map(put, list(files.items()))


def put(file: tuple[str, str], task) -> dict[str, str]:
    name, text = file
    path = task.worker.scratch / name
    path.write_text(text)
    task.put_file(name, path)
    return {"file": name}
