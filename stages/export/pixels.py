"""Decodes an export's pictures once, at one size, for any number of trainings to memory-map."""

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from clipmill.metadata.outputs import Outputs
from clipmill.metadata.places import places_name, read_places
from clipmill.metadata.schema import IMAGE
from clipmill.metadata.shard import ShardWriter
from clipmill.metadata.storage import Storage
from clipmill.pipeline.dataset import Context, Inputs, Task
from clipmill.pipeline.stage import DatasetStage, OneUp
from clipmill.stages.export._documents import put_documents, put_places
from clipmill.stages.ops.tables.exports import numbered, summary_of

# Shapes: N rows of a file, S pixels a side.

BATCH_ROWS = 64  # encoded images in memory


@dataclass(frozen=True, kw_only=True)
class Pixels(DatasetStage):
    """`00000.pixels.npy` (N, S, S, 3), RGB in uint8, and `00000.parquet`, the rows without images.

    Takes an export of `export.parquet`, of this run or another, and leaves out rows whose picture
    is missing or does not decode. The whole picture is scaled to a longer side of `image_size` and
    centred on white, as in `train.clip`. Files, rows, order and columns are the export's, so `rows`
    and `subset` work as with that export.

    Error: exact for one version of the decoders; every training has the same pixels.
    Example: {after: [ingest.image_folder, export.parquet], image_size: 48}
    """

    image_size: OneUp = 48  # pixels a side, as the training's model needs

    version = 1
    determinism = "exact"
    takes = ("data",)
    gives = ("data",)
    reasons = ("no_image", "undecodable")

    def run(self, inputs: Inputs, ctx: Context) -> None:
        dataset = summary_of(inputs.data, ctx.worker.stage)
        ctx.say("decoding pictures")
        write = partial(write_file, inputs.data, self.image_size)
        written = ctx.map(write, numbered(dataset["files"]))
        left = {reason: sum(part["left"][reason] for part in written) for reason in self.reasons}
        files = [part["file"] for part in written]
        exported = sum(file["rows"] for file in files)
        summary = {
            "name": ctx.worker.stage,
            "format": "pixels",
            "seed": ctx.worker.seed,
            "image_size": self.image_size,
            "counts": {"rows": exported + sum(left.values()), "exported": exported, **left},
            "columns": written[0]["columns"] if written else [],
            "files": files,
            "made_by": inputs.steps,
        }
        ctx.map(put_documents, [summary])


def write_file(data: str, size: int, file: dict[str, Any], task: Task) -> dict[str, Any]:
    """Writes one file's pictures, and its rows without images; counts left-out rows by reason."""
    from clipmill.stages.ops.images.squares import decoded

    exported, name = Outputs(Storage(data)), file["file"]
    stem = name.removesuffix(".parquet")
    exported.check(name)
    left: Counter[str] = Counter()
    path, pixels = (task.worker.scratch / f"{stem}.{end}" for end in ("parquet", "pixels.npy"))
    fine: list[NDArray[np.bool_]] = [np.empty(0, bool)]
    with exported.parquet(name) as parquet:
        schema = pa.schema([field for field in parquet.schema_arrow if field.name != IMAGE.name])
        writer = ShardWriter(path, schema, task.page_checksums)
        rows = parquet.metadata.num_rows
        image_NSS3 = open_memmap(pixels, "w+", np.uint8, (max(1, rows), size, size, 3))
        batches = (pa.Table.from_batches([batch]) for batch in parquet.iter_batches(BATCH_ROWS))
        for batch, fine_N in decoded(batches, image_NSS3, left):
            fine.append(fine_N)
            writer.add(batch.select(schema.names))
        image_NSS3.flush()
        del image_NSS3
    sha256, size_bytes = writer.close()
    fine_N = np.concatenate(fine)
    array = {"file": pixels.name, "bytes": pixels.stat().st_size}
    task.put_file(pixels.name, pixels)
    task.put_file(name, path, sha256)
    with suppress(FileNotFoundError):  # an export copied out of its run has no places
        put_places(name, read_places(exported, places_name(name))[fine_N], task)
    entry = {"file": name, "rows": int(fine_N.sum()), "bytes": size_bytes, "sha256": sha256}
    columns = [[field.name, str(field.type)] for field in schema]
    return {
        "file": entry | {"pixels": array},
        "columns": columns,
        "left": {reason: left[reason] for reason in Pixels.reasons},
    }
