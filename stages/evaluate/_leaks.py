"""Matches rows with samples of evaluation tasks: pictures by pHash, texts word for word."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.schema import IMAGE, TEXTS
from clipmill.metadata.storage import Storage
from clipmill.stages.ops.images.decode import ImageError, decode
from clipmill.stages.ops.images.perceptual import phash
from clipmill.stages.ops.images.pixels import shrunk
from clipmill.stages.ops.tasks.folders import Finding, Sample, TaskFolder, refuse, samples

# Shapes: N rows of a batch, K of them with a picture, S pictures of all tasks, T of a tile.

BATCH_ROWS = 64  # decoded pictures in memory
TILE = 1 << 13  # task pictures that a batch is compared with at a time
SAMPLES = pa.schema(
    [
        pa.field("kind", pa.string()),  # picture, caption, prompt
        pa.field("sample", pa.string()),
        pa.field("code", pa.uint64()),  # of a picture
    ]
)


def samples_of(folder: Storage, task: TaskFolder, stage: str) -> Iterator[pa.Table]:
    """Yields a task's pictures and texts, as SAMPLES; raises StageError at an unfit sample."""
    every = samples(folder, task)
    while batch := list(islice(every, BATCH_ROWS)):
        refuse([sample for sample in batch if isinstance(sample, Finding)], stage, folder)
        of_batch = [sample for sample in batch if isinstance(sample, Sample)]
        keys = [sample.key for sample in of_batch]
        code_K = phash([shrunk(sample.rgb) for sample in of_batch])
        yield pa.table([["picture"] * len(keys), keys, code_K], schema=SAMPLES)
        yield _texts("caption", [text for sample in of_batch for text in sample.captions])
    prompts = [form.format(c=name) for name in task.classnames for form in task.templates]
    yield _texts("prompt", prompts)


def _texts(kind: str, texts: list[str]) -> pa.Table:
    plain = plain_text(pa.array(texts, pa.string())).unique()
    kinds = pa.array([kind] * len(plain), pa.string())
    return pa.table([kinds, plain, pa.nulls(len(plain), pa.uint64())], schema=SAMPLES)


def plain_text(text: pa.Array) -> pa.Array:
    """Converts texts to lower case, with one space between words."""
    spaced = pc.replace_substring_regex(pc.utf8_lower(text), pattern=r"\s+", replacement=" ")
    return pc.utf8_trim_whitespace(spaced)


def matching_pictures(batch: pa.Table, pictures: pl.DataFrame, max_distance: int) -> pl.DataFrame:
    """Returns near pairs of a row and a task's picture: `row`, task, kind, sample, distance."""
    row_K, code_K = _codes(batch[IMAGE.name].to_pylist())
    code_S = pictures["code"].to_numpy()
    near = [(row_K[:0], row_K[:0], np.empty(0, np.uint8))]
    for start in range(0, len(code_S), TILE):
        apart_KT = np.bitwise_count(code_K[:, None] ^ code_S[start : start + TILE])
        k, t = np.nonzero(apart_KT <= max_distance)
        near.append((row_K[k], t + start, apart_KT[k, t]))
    row, picture, distance = (np.concatenate(parts) for parts in zip(*near, strict=True))
    order = np.lexsort((picture, row))
    return pictures[picture[order]].select(
        pl.Series("row", row[order]),
        *("task", "kind", "sample"),
        pl.Series("distance", distance[order]),
    )


def _codes(bodies: list[bytes | None]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Returns the rows whose picture decodes, and its pHash."""
    rows, pictures = [], []
    for row, body in enumerate(bodies):
        try:
            pictures.append(shrunk(decode(body or b"")))
            rows.append(row)
        except ImageError:
            continue  # an undecodable picture leaks nothing
    return np.array(rows, np.int64), phash(pictures) if rows else np.empty(0, np.uint64)


def matching_texts(batch: pa.Table, texts: pl.DataFrame) -> pl.DataFrame:
    """Returns pairs of a row and a task's text in it: `row`, task, kind, sample, distance."""
    lists = batch[TEXTS.name].combine_chunks()
    text = plain_text(pc.struct_field(pc.list_flatten(lists), "text"))
    of_rows = pl.DataFrame({"row": pc.list_parent_indices(lists), "sample": text}).unique()
    pairs = of_rows.join(texts, on="sample").sort("row", "task", "kind", "sample")
    return pairs.select("row", "task", "kind", "sample", distance=pl.lit(0, pl.UInt8))
