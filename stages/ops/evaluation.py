"""Evaluation sets as what is to be kept out of a pool: CLIP_benchmark's folders, or Parquet files.

Of these each is a task, and has what is compared in a column, or `image`, encoded pictures of which
it is made; `key` names a row, else its number does.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from metadata.fingerprint import digest
from metadata.storage import Storage
from pipeline.errors import StageError
from stages.ops import tasks
from stages.ops.images import RGB, ImageError, decode, shrunk

BATCH = 64  # decoded pictures held at a time
PARQUET = ".parquet"
Measure = Callable[[list[RGB]], np.ndarray]  # a value of each picture


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is read of a task: a column of that type; of pictures, what `measure` makes of them."""

    column: pa.Field
    measure: Measure | None  # None: captions


def listed(uri: str, stage: str) -> list[dict[str, Any]]:
    """The tasks at a URI, each with a digest of its bytes."""
    folder = Storage(uri)
    if files := _parquet(folder):
        named = [(file.removesuffix(PARQUET), _digest(folder, file)) for file in files]
    else:
        named = [(name, tasks.content_digest(folder, name)) for name in tasks.names(folder)]
    if not named:
        raise StageError(
            found="no task",
            where=f"stage '{stage}', key `tasks`: {folder}",
            do="give a folder of tasks in CLIP_benchmark's layout, or of Parquet files",
        )
    return [{"task": name, "sha256": sha256} for name, sha256 in named]


def glanced(uri: str) -> str:
    """A digest that changes with the name, size or time of a file."""
    folder = Storage(uri)
    if files := _parquet(folder):
        held = {entry.name: entry for entry in folder.entries()}
        return digest([astuple(held[file]) for file in files])
    return tasks.listing_digest(folder)


def read(uri: str, name: str, wanted: Wanted, stage: str) -> Iterator[pa.Table]:
    """key and value of every sample of a task; StageError at the first that is not as it should."""
    folder = Storage(uri)
    schema = pa.schema([("key", pa.string()), ("value", wanted.column.type)])
    if _parquet(folder):
        batches = _of_parquet(folder, f"{name}{PARQUET}", wanted, stage)
    else:
        batches = _of_folder(folder, name, wanted, stage)
    for keys, values in batches:
        yield pa.table({"key": keys, "value": values}).cast(schema)


def _of_folder(folder: Storage, name: str, wanted: Wanted, stage: str):
    task, findings = tasks.describe(folder, name)
    tasks.refuse([finding for finding in findings if finding.is_fatal], stage)
    if wanted.measure is None and not task.is_retrieval:
        return  # class names are no captions
    every = tasks.samples(folder, task)
    while batch := list(islice(every, BATCH)):
        tasks.refuse([found for found in batch if isinstance(found, tasks.Finding)], stage)
        samples = [sample for sample in batch if isinstance(sample, tasks.Sample)]
        if wanted.measure is None:
            texts = [(sample.key, text) for sample in samples for text in sample.captions]
            yield [key for key, _ in texts], [text for _, text in texts]
        else:
            values = wanted.measure([shrunk(sample.rgb) for sample in samples])
            yield [sample.key for sample in samples], _array(values)


def _of_parquet(folder: Storage, file: str, wanted: Wanted, stage: str):
    where = f"stage '{stage}', key `tasks`: {folder}/{file}"
    with folder.open(file) as source:
        held = pq.ParquetFile(source)
        there = held.schema_arrow.names
        column = next((n for n in (wanted.column.name, "image") if n in there), None)
        if column is None or (column == "image" and wanted.measure is None):
            raise StageError(
                found=f"no column '{wanted.column.name}'",
                where=where,
                do="write it into the file, or `image` with encoded pictures",
            )
        row = 0
        for batch in held.iter_batches(BATCH, columns=[n for n in ("key", column) if n in there]):
            keys = batch["key"] if "key" in there else range(row, row + len(batch))
            keys = [str(key) for key in keys]
            values = batch[column]
            if column == "image":
                assert wanted.measure is not None
                values = _array(wanted.measure([_decoded(body, where) for body in values]))
            if values.null_count:
                raise StageError(f"a null in '{column}'", where, "drop the row")
            yield keys, values
            row += len(batch)


def _decoded(body: pa.Scalar, where: str) -> RGB:
    try:
        return shrunk(decode(body.as_py() or b""))
    except ImageError as error:
        raise StageError(f"a picture that is {error.code}", where, "replace it") from None


def _array(value: np.ndarray) -> pa.Array:
    if value.ndim == 1:
        return pa.array(value)
    flat = pa.array(np.ascontiguousarray(value, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, value.shape[1])


def _parquet(folder: Storage) -> list[str]:
    return sorted(e.name for e in folder.entries() if e.name.endswith(PARQUET))


def _digest(folder: Storage, file: str) -> str:
    with folder.open(file) as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
