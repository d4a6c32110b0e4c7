"""A stage for tests of the engine: it gives a model, which is one number in a file."""

from dataclasses import dataclass

from metadata.schema import TEXT
from pipeline.dataset import Context, Inputs
from pipeline.stage import DatasetStage


@dataclass(frozen=True, kw_only=True)
class Learn(DatasetStage):
    """model.txt: how many rows there are.

    Error: none.
    """

    rounds: int = 1

    version = 1
    determinism = "exact"
    gives = ("model",)
    reads = (TEXT,)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        counts = [inputs.rows.rows(shard) for shard in range(len(inputs.rows))]
        ctx.map(put_count, [sum(counts)])


def put_count(count: int, task) -> dict[str, int]:
    path = task.worker.scratch / "model.txt"
    path.write_text(str(count))
    task.put_file(path.name, path)
    return {"rows": count}
