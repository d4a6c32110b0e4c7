"""The samples that rows are compared with: made once a task, stored in out/, opened by workers."""

from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from metadata.keys import redacted
from metadata.storage import Storage
from pipeline.dataset import Task
from pipeline.errors import StageError

if TYPE_CHECKING:
    from stages.dedup._copies import Samples
    from stages.dedup.against import AgainstEvaluation

FEATURES = "features"  # as `model`: the frozen network of embed.features


def prepared(
    stage: "AgainstEvaluation", model: str | None, item: dict[str, Any], task: Task
) -> dict[str, Any]:
    """out/TASK.parquet: key and value of each sample to compare with. Their number.

    And of captions the number of those that are too short to compare.
    """
    from stages.dedup._copies import are_long
    from stages.dedup._shingles import plain
    from stages.ops.evaluation import Wanted, read

    worker, name = task.worker, item["task"]
    field = pa.field(stage.compared.name, stage.compared.dtype)
    wanted = Wanted(column=field, measure=measure_of(stage, model, task))
    path, read_rows, samples = worker.scratch / f"{name}.parquet", 0, 0
    schema = pa.schema([("key", pa.string()), ("value", field.type)])
    with pq.ParquetWriter(path, schema) as writer:
        for table in read(stage.tasks, name, wanted, worker.stage):
            read_rows += len(table)
            if stage.compare == "caption":
                table = table.filter(are_long(plain(table["value"]), stage.unit, stage.size))
            writer.write_table(table)
            samples += len(table)
    task.put_file(path.name, path)
    short = {"too_short": read_rows - samples} if stage.compare == "caption" else {}
    return {"samples": samples, **short}


def measure_of(stage: "AgainstEvaluation", trained: str | None, task: Task) -> Any:
    """What makes a value of each picture; None where captions are compared."""
    if stage.compare == "caption":
        return None
    if stage.compared.name == "phash":
        from stages.ops.perceptual import phash

        return phash
    name = f"checkpoint:{trained}" if trained else stage.model
    if name is None:
        return partial(unmeasured, stage.compared.name)
    at = task.worker.device, task.worker.threads
    kind, _, precision = name.partition(":")
    model: Any
    if kind == FEATURES:
        from stages.models.features import ImageFeatures

        model = ImageFeatures(precision or "bfloat16", *at)  # type: ignore[arg-type]
    else:
        from stages.models.image_text import load

        model = load(name, *at)
    if trained is None and model.sha256:  # a stage's model is the engine's to watch
        task.worker.pin(name, model.sha256)
    return model if kind == FEATURES else model.embed_images


def unmeasured(column: str, pictures: list) -> NDArray[np.float32]:
    raise StageError(
        found=f"evaluation images, and nothing that makes a '{column}' of them",
        where="keys `column` and `model`",
        do="name the model of the pool's embeddings, or give Parquet files with that column",
    )


@lru_cache(maxsize=1)  # a worker asks for the same samples with every shard
def samples_of(
    stage: "AgainstEvaluation", folder: str, names: tuple[str, ...]
) -> list[tuple[pa.ChunkedArray, "Samples"]]:
    """For each task the keys of its samples, and what finds the nearest of them."""
    from stages.dedup import _copies as copies

    found: list[tuple[pa.ChunkedArray, Samples]] = []
    for name in names:
        with Storage(folder).open(f"out/{name}.parquet") as source:
            held = pq.read_table(source)
        samples: Samples
        if stage.compare == "phash":
            samples = copies.Codes(held["value"])
        elif stage.compare == "embedding":
            where = f"key `tasks`: task '{name}' in {redacted(stage.tasks)}"
            samples = copies.Directions(held["value"], where)
        else:
            samples = copies.Captions(held["value"], stage.unit, stage.size)
        found.append((held["key"], samples))
    return found
