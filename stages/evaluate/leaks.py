"""What an export shows of evaluation tasks before they are evaluated: pictures, and texts."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Meta

from clipmill.metadata.outputs import Outputs
from clipmill.metadata.schema import IMAGE, TEXTS, UID
from clipmill.metadata.storage import Storage
from clipmill.pipeline.dataset import Context, Inputs, Mask, Task
from clipmill.pipeline.stage import DatasetStage, NonEmpty
from clipmill.stages.ops.tables.exports import summary_of
from clipmill.stages.ops.tables.rows import put_table, put_text
from clipmill.stages.ops.tasks.folders import (
    content_digest,
    describe,
    listing_digest,
    look_at,
    names,
    need_some,
    refuse,
)

LEAKS, COUNTS = "leaks.parquet", "leaks.json"
FOUND = pa.schema(
    [
        pa.field("uid", UID.dtype),
        pa.field("file", pa.string()),
        pa.field("position", pa.int32()),
        pa.field("task", pa.string()),
        pa.field("kind", pa.string()),
        pa.field("sample", pa.string()),
        pa.field("distance", pa.int32()),
    ]
)
SAMPLE = ("task", "kind", "sample")


@dataclass(frozen=True, kw_only=True)
class EvaluationLeaks(DatasetStage):
    """leaks.parquet: the rows of an export that show a picture of a task, or bear a text of it.

    One row for every row and sample that meet: uid, file of the export, position in that file,
    task, kind, sample, distance. Of kind `picture`, pHashes are at most `max_distance` bits apart,
    and sample is the picture's key. A `caption` of a retrieval task or the `prompt` of a class is a
    text of the row, word for word, capitals and spaces aside: sample is that text, distance 0.
    leaks.json counts by task and kind the distinct samples, and those of them that were found.

    Source: pHash as imagehash computes it, of tasks and rows alike.
    Error: a crop or a mirror image has another pHash; plain pictures are all alike. A text that
    holds more than the caption is not found: dedup.against compares those.
    Example: {after: [ingest.image_folder, export.parquet], tasks: eval}
    """

    tasks: NonEmpty  # folder of tasks, each a subfolder
    max_distance: Annotated[int, Meta(ge=0, le=16)] = 4  # bits of 64 that a near copy differs in

    version = 1
    determinism = "exact"
    takes = ("data",)
    gives = ()  # nothing reads it but people and programs

    def look(self) -> None:
        look_at(Storage(self.tasks), self.names("key `tasks`"))

    def outside(self) -> str:
        """Names, sizes and times of the tasks' files."""
        return listing_digest(Storage(self.tasks))

    def names(self, where: str) -> list[str]:
        """The tasks; StageError where the folder has none."""
        folder = Storage(self.tasks)
        return need_some(names(folder), folder, where)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        stage = ctx.worker.stage
        tasks = self.names(f"stage '{stage}', key `tasks`")
        files = [file["file"] for file in summary_of(inputs.data, stage)["files"]]
        ctx.say("reading the tasks")
        digests = [(name, content_digest(Storage(self.tasks), name)) for name in tasks]
        items = [{"task": name, "sha256": sha256} for name, sha256 in digests]
        ctx.map(partial(put_samples, self.tasks, ctx.folder), items)
        ctx.say("comparing with the tasks")
        search = partial(put_found, self.max_distance, inputs.data, ctx.folder, tasks)
        counted = ctx.map(partial(search, mask=inputs.mask), files)
        rows = sum(counts["rows"] for counts in counted)
        about = {"max_distance": self.max_distance, "rows": rows}
        ctx.map(partial(put_leaks, ctx.folder, tasks, files), [about])
        for done in ("samples", "found"):
            Storage(ctx.folder).delete_folder(done)


def put_samples(tasks: str, folder: str, item: dict[str, Any], task: Task) -> dict[str, Any]:
    """Stores samples/TASK.parquet; gives the item."""
    from clipmill.stages.evaluate._leaks import SAMPLES, samples_of

    stage, of = task.worker.stage, Storage(tasks)
    described, findings = describe(of, item["task"])
    refuse([finding for finding in findings if finding.is_fatal], stage, of)
    put_part(folder, f"samples/{item['task']}.parquet", samples_of(of, described, stage), SAMPLES)
    return item


def put_found(
    max_distance: int,
    data: str,
    folder: str,
    tasks: list[str],
    file: str,
    task: Task,
    mask: Mask | None = None,
) -> dict[str, int]:
    """Stores found/FILE, what the rows of one file of the export show and bear; how many rows."""
    from clipmill.stages.evaluate._leaks import BATCH_ROWS, borne, shown

    every, exported = samples_in(folder, tasks), Outputs(Storage(data))
    pictures = every.filter(pl.col("kind") == "picture")
    texts = every.filter(pl.col("kind") != "picture").select(SAMPLE)
    exported.check(file)
    columns, parts = [UID.name, IMAGE.name, TEXTS.name], []
    with exported.parquet(file) as parquet:
        position_N = np.arange(parquet.metadata.num_rows, dtype=np.int32)
        kept_N = position_N if mask is None else position_N[mask.times(file) > 0]
        for number, batch in enumerate(parquet.iter_batches(BATCH_ROWS, columns=columns)):
            first = number * BATCH_ROWS
            a, b = np.searchsorted(kept_N, (first, first + len(batch)))
            table = pa.Table.from_batches([batch]).take(kept_N[a:b] - first)
            for met in (shown(table, pictures, max_distance), borne(table, texts)):
                row = met["row"].to_numpy()
                where = {"uid": table[UID.name].take(row), "position": kept_N[a:b][row]}
                named = {name: met[name].to_arrow() for name in (*SAMPLE, "distance")}
                of_file = {"file": pa.array([file] * len(row), pa.string())}
                parts.append(pa.table(where | of_file | named).select(FOUND.names).cast(FOUND))
    put_part(folder, f"found/{file}", parts, FOUND)
    return {"rows": len(kept_N)}


def put_leaks(
    folder: str, tasks: list[str], files: list[str], about: dict[str, Any], task: Task
) -> dict[str, Any]:
    """Stores out/leaks.parquet and out/leaks.json."""
    leaks = pa.concat_tables(
        [FOUND.empty_table(), *(read_part(folder, f"found/{f}") for f in files)]
    )
    put_table(LEAKS, leaks, task)
    samples, found = numbers(samples_in(folder, tasks)), numbers(pl.DataFrame(leaks))
    by_task: dict[str, Any] = {name: {} for name in tasks}
    for (name, kind), number in samples.items():
        by_task[name][kind] = {"samples": number, "found": found.get((name, kind), 0)}
    put_text(COUNTS, json.dumps({**about, "tasks": by_task}, indent=1) + "\n", task)
    return {"leaks": len(leaks)}


def numbers(samples: pl.DataFrame) -> dict[tuple[str, str], int]:
    """How many samples there are of every task and kind, by both."""
    counted = samples.unique(SAMPLE).group_by("task", "kind").len().sort("task", "kind")
    return {(name, kind): number for name, kind, number in counted.rows()}


def samples_in(folder: str, tasks: list[str]) -> pl.DataFrame:
    """Every sample of the tasks, with its `task`."""
    tables = [
        pl.DataFrame(read_part(folder, f"samples/{name}.parquet")).with_columns(task=pl.lit(name))
        for name in tasks
    ]
    return pl.concat(tables).unique(maintain_order=True)


def put_part(folder: str, name: str, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Stores a Parquet file for later calls of this stage."""
    held = Storage(folder)
    with held.scratch(name) as path:
        with pq.ParquetWriter(path, schema) as writer:
            for table in tables:
                writer.write_table(table)
        held.commit(path, name)


def read_part(folder: str, name: str) -> pa.Table:
    with Storage(folder).open(name) as source:
        return pq.read_table(source)
