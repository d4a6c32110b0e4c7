"""Finds pictures and texts of evaluation tasks in an export."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Annotated, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import Meta
from numpy.typing import NDArray

from clipmill.metadata.outputs import Outputs
from clipmill.metadata.schema import IMAGE, TEXTS, UID
from clipmill.metadata.storage import Storage
from clipmill.pipeline.dataset import Context, Inputs, Mask, Task
from clipmill.pipeline.stage import DatasetStage, NonEmpty
from clipmill.stages.ops.images.pixels import RGB, shrunk
from clipmill.stages.ops.tables.exports import summary_of
from clipmill.stages.ops.tables.rows import put_json, put_table
from clipmill.stages.ops.tasks.folders import (
    Finding,
    Sample,
    TaskFolder,
    content_digest,
    describe,
    listing_digest,
    look_at,
    names,
    need_some,
    refuse,
    samples,
)

# Shapes: N rows of a batch, K of them with a picture, S pictures of all tasks, T of a tile.

BATCH_ROWS = 64  # decoded pictures in memory
TILE = 1 << 13  # task pictures that a batch is compared with at a time
SAMPLES = pa.schema(
    [
        pa.field("kind", pa.string()),  # picture, caption, prompt
        pa.field("sample", pa.string()),
        pa.field("code", pa.uint64()),  # of a picture
        pa.field("turned", pa.binary()),  # its codes by `turned`, the bytes of (V, C) uint64
    ]
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
    """leaks.parquet: the rows of an export with a picture or a text of an evaluation task.

    One row for every match of a row and a sample: uid, file of the export, position in that file,
    task, kind, sample, distance. For kind `picture`, pHashes are at most `max_distance` bits apart,
    or those of three channels at most `max_turned`, once cut out of a border of one colour and
    turned by up to 12 degrees; sample is the picture's key, and distance of the plain pHashes. For
    `caption` (of a retrieval task) and `prompt` (of a class), a text of the row is equal but for
    case and spaces; sample is that text, and distance 0. leaks.json counts, by task and kind, the
    distinct samples, and the samples found.

    Source: pHash as imagehash computes it, for tasks and rows.
    Error: of drawings turned and bordered .93 are found, of others .001 (docs/measured/dedup.md). A
    crop or a mirror image has another pHash; plain pictures are all alike. A text that contains a
    caption and more is not found: use dedup.against for these.
    Example: {after: [ingest.image_folder, export.parquet], tasks: eval}
    """

    tasks: NonEmpty  # folder of tasks, each a subfolder
    max_distance: Annotated[int, Meta(ge=0, le=16)] = 4  # cap on differing bits of 64
    # cap on differing bits of 192 behind a border and a turn; null: these are not looked for
    max_turned: Annotated[int, Meta(ge=0, le=48)] | None = 12

    version = 2
    determinism = "exact"
    takes = ("data",)
    gives = ()  # no stage reads it

    def look(self) -> None:
        look_at(Storage(self.tasks), self.names("key `tasks`"))

    def outside(self) -> str:
        """Returns a digest of names, sizes and times of the tasks' files."""
        return listing_digest(Storage(self.tasks))

    def names(self, where: str) -> list[str]:
        """Returns the names of the tasks; raises StageError if there is none."""
        folder = Storage(self.tasks)
        return need_some(names(folder), folder, where)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        stage = ctx.worker.stage
        tasks = self.names(f"stage '{stage}', key `tasks`")
        files = [file["file"] for file in summary_of(inputs.data, stage)["files"]]
        ctx.say("reading the tasks")
        digests = [(name, content_digest(Storage(self.tasks), name)) for name in tasks]
        items = [{"task": name, "sha256": sha256} for name, sha256 in digests]
        ctx.map(partial(put_samples, self.tasks, ctx.folder, self.max_turned is not None), items)
        ctx.say("comparing with the tasks")
        within = self.max_distance, self.max_turned
        search = partial(put_found, within, inputs.data, ctx.folder, tasks, inputs.mask)
        counted = ctx.map(search, files)
        rows = sum(counts["rows"] for counts in counted)
        about = {"max_distance": self.max_distance, "max_turned": self.max_turned, "rows": rows}
        ctx.map(partial(put_leaks, ctx.folder, tasks, files), [about])
        for temporary in ("samples", "found"):
            Storage(ctx.folder).delete_folder(temporary)


def put_samples(
    tasks: str, folder: str, turns: bool, item: dict[str, Any], task: Task
) -> dict[str, Any]:
    """Stores samples/TASK.parquet; returns the item."""
    stage, source = task.worker.stage, Storage(tasks)
    described, findings = describe(source, item["task"])
    refuse([finding for finding in findings if finding.is_fatal], stage, source)
    tables = samples_of(source, described, turns, stage)
    put_part(folder, f"samples/{item['task']}.parquet", tables, SAMPLES)
    return item


def put_found(
    within: tuple[int, int | None],
    data: str,
    folder: str,
    tasks: list[str],
    mask: Mask | None,
    file: str,
    task: Task,
) -> dict[str, int]:
    """Stores found/FILE, the matches of one exported file's rows; returns the number of rows."""
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
            near = matching_pictures(table, pictures, *within)
            for pairs in (near, matching_texts(table, texts)):
                row = pairs["row"].to_numpy()
                where = {"uid": table[UID.name].take(row), "position": kept_N[a:b][row]}
                named = {name: pairs[name].to_arrow() for name in (*SAMPLE, "distance")}
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
    return put_json(COUNTS, {**about, "tasks": by_task}, task)


def numbers(samples: pl.DataFrame) -> dict[tuple[str, str], int]:
    """Counts the distinct samples by task and kind."""
    counted = samples.unique(SAMPLE).group_by("task", "kind").len().sort("task", "kind")
    return {(name, kind): number for name, kind, number in counted.rows()}


def samples_in(folder: str, tasks: list[str]) -> pl.DataFrame:
    """Reads the distinct samples of the tasks, with their `task`."""
    tables = [
        pl.DataFrame(read_part(folder, f"samples/{name}.parquet")).with_columns(task=pl.lit(name))
        for name in tasks
    ]
    return pl.concat(tables).unique(maintain_order=True)


def put_part(folder: str, name: str, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Stores a Parquet file for later calls of this stage."""
    storage = Storage(folder)
    with storage.scratch(name) as path:
        with pq.ParquetWriter(path, schema) as writer:
            for table in tables:
                writer.write_table(table)
        storage.commit(path, name)


def read_part(folder: str, name: str) -> pa.Table:
    with Storage(folder).open(name) as source:
        return pq.read_table(source)


def samples_of(folder: Storage, task: TaskFolder, turns: bool, stage: str) -> Iterator[pa.Table]:
    """Yields a task's pictures and texts, as SAMPLES; raises StageError at an unfit sample."""
    from clipmill.stages.ops.images.perceptual import phash  # decoders: not while a plan is made
    from clipmill.stages.ops.images.turned import codes

    every = samples(folder, task)
    while batch := list(islice(every, BATCH_ROWS)):
        refuse([sample for sample in batch if isinstance(sample, Finding)], stage, folder)
        of_batch = [sample for sample in batch if isinstance(sample, Sample)]
        keys = [sample.key for sample in of_batch]
        pictures = [shrunk(sample.rgb) for sample in of_batch]
        turned = [code_VC.tobytes() for code_VC in codes(pictures)] if turns else [None] * len(keys)
        columns = [["picture"] * len(keys), keys, phash(pictures), turned]
        yield pa.table(columns, schema=SAMPLES)
        yield _texts("caption", [text for sample in of_batch for text in sample.captions])
    prompts = [form.format(c=name) for name in task.classnames for form in task.templates]
    yield _texts("prompt", prompts)


def _texts(kind: str, texts: list[str]) -> pa.Table:
    plain = plain_text(pa.array(texts, pa.string())).unique()
    kinds = pa.array([kind] * len(plain), pa.string())
    none = (pa.nulls(len(plain), SAMPLES.field(name).type) for name in ("code", "turned"))
    return pa.table([kinds, plain, *none], schema=SAMPLES)


def plain_text(text: pa.Array) -> pa.Array:
    """Converts texts to lower case, with one space between words."""
    spaced = pc.replace_substring_regex(pc.utf8_lower(text), pattern=r"\s+", replacement=" ")
    return pc.utf8_trim_whitespace(spaced)


def matching_pictures(
    batch: pa.Table, pictures: pl.DataFrame, max_distance: int, max_turned: int | None
) -> pl.DataFrame:
    """Returns near pairs of a row and a task's picture: `row`, task, kind, sample, distance."""
    from clipmill.stages.ops.images.perceptual import phash
    from clipmill.stages.ops.images.turned import CHANNELS, VIEWS, apart, codes

    row_K, rgb_K = _decoded(batch[IMAGE.name].to_pylist())
    code_K, code_S = phash(rgb_K), pictures["code"].to_numpy()
    turned_KC = None if max_turned is None else codes(rgb_K, [0])[:, 0]
    near = [(row_K[:0], row_K[:0], np.empty(0, np.uint8))]
    for start in range(0, len(code_S), TILE):
        apart_KT = np.bitwise_count(code_K[:, None] ^ code_S[start : start + TILE])
        is_near_KT = apart_KT <= max_distance
        if turned_KC is not None and max_turned is not None:
            turned = b"".join(pictures["turned"][start : start + TILE])
            turned_TVC = np.frombuffer(turned, np.uint64).reshape(-1, VIEWS, CHANNELS)
            is_near_KT |= apart(turned_KC, turned_TVC) <= max_turned
        k, t = np.nonzero(is_near_KT)
        near.append((row_K[k], t + start, apart_KT[k, t]))
    row, picture, distance = (np.concatenate(parts) for parts in zip(*near, strict=True))
    order = np.lexsort((picture, row))
    return pictures[picture[order]].select(
        pl.Series("row", row[order]),
        *("task", "kind", "sample"),
        pl.Series("distance", distance[order]),
    )


def _decoded(bodies: list[bytes | None]) -> tuple[NDArray[np.int64], list[RGB]]:
    """Returns the rows whose picture decodes, and it."""
    from clipmill.stages.ops.images.decode import decode
    from clipmill.stages.ops.images.opened import ImageError

    rows, pictures = [], []
    for row, body in enumerate(bodies):
        try:
            pictures.append(shrunk(decode(body or b"")))
            rows.append(row)
        except ImageError:
            continue  # an undecodable picture leaks nothing
    return np.array(rows, np.int64), pictures


def matching_texts(batch: pa.Table, texts: pl.DataFrame) -> pl.DataFrame:
    """Returns pairs of a row and a task's text in it: `row`, task, kind, sample, distance."""
    lists = batch[TEXTS.name].combine_chunks()
    text = plain_text(pc.struct_field(pc.list_flatten(lists), "text"))
    of_rows = pl.DataFrame({"row": pc.list_parent_indices(lists), "sample": text}).unique()
    pairs = of_rows.join(texts, on="sample").sort("row", "task", "kind", "sample")
    return pairs.select("row", "task", "kind", "sample", distance=pl.lit(0, pl.UInt8))
