"""Reads the samples of evaluation tasks, and a value of each: a hash, an embedding, a caption.

Tasks are folders in CLIP_benchmark's layout, Parquet files, or both. A file has the values in a
column, or encoded pictures in `image`; a row is named by `key`, else by its number.
"""

from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipmill.metadata.fingerprint import digest
from clipmill.metadata.storage import Entry, Storage
from clipmill.pipeline.dataset import Task
from clipmill.pipeline.errors import StageError
from clipmill.stages.ops.images.decode import decode
from clipmill.stages.ops.images.opened import RGB, ImageError
from clipmill.stages.ops.images.pixels import shrunk
from clipmill.stages.ops.tasks import folders as tasks
from clipmill.stages.ops.vectors.matrices import as_matrix, holds_vectors, unusable

BATCH = 64  # decoded pictures held at a time
PARQUET = ".parquet"
PICTURES = "encoded pictures, as binary"
Measure = Callable[[list[RGB]], np.ndarray]  # a value of each picture


@dataclass(frozen=True, kw_only=True)
class Request:
    """A value to read of each sample: a column, or what `measure` makes of its picture.

    Without a `measure` it is a caption. `fits` says which values are stored; else all are. Where
    `measure` returns several values of each picture, `views`, stored values are not taken.
    """

    column: pa.Field
    measure: Measure | None
    fits: Callable[[pa.ChunkedArray], pa.Array] | None = None
    key: str = "tasks"  # the setting that names the folder
    views: int = 1


def tasks_at(uri: str, stage: str, key: str = "tasks") -> list[dict[str, Any]]:
    """Returns the tasks at a URI by name, each with a digest of its bytes; `key` names the URI."""
    folder = Storage(uri)
    where = f"stage '{stage}', key `{key}`: {folder}"
    files = [entry.name for entry in _parquet(folder)]
    digests = [(file.removesuffix(PARQUET), folder.sha256(file)) for file in files]
    digests += [(name, tasks.content_digest(folder, name)) for name in tasks.names(folder)]
    if not digests:
        raise StageError(
            found=tasks.none_at(folder),
            where=where,
            do="give a folder of tasks in CLIP_benchmark's layout, or of Parquet files",
        )
    digests.sort()
    for (name, _), (following, _) in pairwise(digests):
        if name == following:
            raise StageError(f"'{name}' and '{name}{PARQUET}'", where, "rename one: each is a task")
    return [{"task": name, "sha256": sha256} for name, sha256 in digests]


def listing_digest(uri: str) -> str:
    """Returns a digest that changes with the name, size or time of a file."""
    folder = Storage(uri)
    return digest([*map(astuple, _parquet(folder)), tasks.listing_digest(folder)])


def put_samples(uri: str, name: str, request: Request, task: Task) -> dict[str, int]:
    """Stores out/NAME.parquet, key and value of each sample; returns counts `read` and `stored`."""
    path, read_rows, stored = task.worker.scratch / f"{name}{PARQUET}", 0, 0
    schema = pa.schema([("key", pa.string()), ("value", request.column.type)])
    with pq.ParquetWriter(path, schema) as writer:
        for table in read(uri, name, request, task.worker.stage):
            read_rows += len(table)
            if request.fits is not None:
                table = table.filter(request.fits(table["value"]))
            writer.write_table(table)
            stored += len(table)
    task.put_file(path.name, path)
    return {"read": read_rows, "stored": stored}


def samples_in(folder: str, name: str) -> pa.Table:
    """Returns key and value of each sample that `put_samples` stored in a stage's folder."""
    with Storage(folder).open(f"out/{name}{PARQUET}") as source:
        return pq.read_table(source)


def read(uri: str, name: str, request: Request, stage: str) -> Iterator[pa.Table]:
    """Yields key and value of every sample of a task; StageError at the first unfit sample."""
    folder, file = Storage(uri), f"{name}{PARQUET}"
    schema = pa.schema([("key", pa.string()), ("value", request.column.type)])
    if any(entry.name == file for entry in _parquet(folder)):
        batches = _of_parquet(folder, file, request, stage)
    else:
        batches = _of_folder(folder, name, request, stage)
    width = None
    for where, keys, read_values in batches:
        if isinstance(read_values, pa.Array):
            values = read_values
        else:
            keys = [key for key in keys for _ in range(request.views)]
            values = _measured(request, read_values)
        if isinstance(schema.field("value").type, pa.ListType):
            width = checked_width(values, width, where, keys)
        yield pa.table({"key": keys, "value": values}).cast(schema)


def checked_width(values: pa.Array, width: int | None, where: str, keys: list[str]) -> int | None:
    """Returns the vectors' common width; StageError for another width, zero or not finite."""
    wide_N = pc.list_value_length(values).to_numpy()
    width = int(wide_N[0]) if width is None and len(wide_N) else width
    for row in np.flatnonzero(wide_N != width)[:1]:
        found = f"an embedding {wide_N[row]} wide, after others {width} wide"
        raise StageError(found, f"{where} {keys[row]}", "embed all with one model")
    for row in np.flatnonzero(unusable(as_matrix(values)))[:1]:
        found = "an embedding that is zero or not finite"
        raise StageError(found, f"{where} {keys[row]}", "drop it")
    return width


def column_of(schema: pa.Schema, request: Request, where: str) -> str:
    """Returns the name of the column to read; StageError if it is missing or of another type."""
    name = request.column.name
    takes_pictures = request.measure is not None
    if name in schema.names and request.views == 1:
        fits, what = _kinds(request.column.type)
    elif "image" in schema.names and takes_pictures:
        name, fits, what = "image", (pa.types.is_binary, pa.types.is_large_binary), PICTURES
    else:
        instead = f", or `image` with {PICTURES}" if takes_pictures else ""
        raise StageError(f"no column '{name}'", where, f"write it into the file{instead}")
    dtype = schema.field(name).type
    if not any(fit(dtype) for fit in fits):
        raise StageError(f"a column '{name}' of {dtype}", where, f"write it as {what}")
    return name


def _of_folder(folder: Storage, name: str, request: Request, stage: str):
    """Yields batches of (where in the task, keys, pictures or captions)."""
    task, findings = tasks.describe(folder, name)
    key = request.key
    tasks.refuse([finding for finding in findings if finding.is_fatal], stage, folder, key)
    if request.measure is None and not task.is_retrieval:
        return  # class names are no captions
    where = f"stage '{stage}', key `{key}`: {folder}/{name}, key"
    stream = tasks.samples(folder, task)
    while batch := list(islice(stream, BATCH)):
        bad = [item for item in batch if isinstance(item, tasks.Finding)]
        tasks.refuse(bad, stage, folder, key)
        samples = [sample for sample in batch if isinstance(sample, tasks.Sample)]
        if request.measure is None:
            texts = [(sample.key, text) for sample in samples for text in sample.captions]
            yield where, [key for key, _ in texts], pa.array([text for _, text in texts])
        else:
            yield where, [sample.key for sample in samples], [shrunk(s.rgb) for s in samples]


def _of_parquet(folder: Storage, file: str, request: Request, stage: str):
    """Yields batches of (where in the file, keys, pictures or values of the column)."""
    where = f"stage '{stage}', key `{request.key}`: {folder}/{file}"
    try:
        with folder.open(file) as source:
            parquet = pq.ParquetFile(source)
            column = column_of(parquet.schema_arrow, request, where)
            present = [name for name in ("key", column) if name in parquet.schema_arrow.names]
            place, row = f"{where}, {'key' if 'key' in present else 'row'}", 0
            for batch in parquet.iter_batches(BATCH, columns=present):
                keys = batch["key"] if "key" in present else range(row, row + len(batch))
                keys = [str(key) for key in keys]
                yield place, keys, _values(batch[column], column, place, keys)
                row += len(batch)
    except (pa.ArrowException, OSError) as error:
        raise StageError(f"no Parquet that can be read: {error}", where, "write it again") from None


def _kinds(dtype: pa.DataType):
    """Returns tests of the types that a column may have, and their names for an error."""
    if pa.types.is_uint64(dtype):
        return (pa.types.is_uint64, pa.types.is_int64), "64-bit integers, uint64 or int64"
    if pa.types.is_list(dtype):
        return (holds_vectors,), "lists of floats"
    return (pa.types.is_string, pa.types.is_large_string, _is_category), "strings"


def _is_category(dtype: pa.DataType) -> bool:
    return pa.types.is_dictionary(dtype) and pa.types.is_string(dtype.value_type)


def _values(values: pa.Array, column: str, where: str, keys: list[str]) -> pa.Array | list[RGB]:
    if column == "image":
        bodies = zip(values, keys, strict=True)
        return [_decoded(body, f"{where} {key}") for body, key in bodies]
    if values.null_count:
        first = keys[values.is_null().index(True).as_py()]
        raise StageError(f"a null in '{column}'", f"{where} {first}", "drop the row")
    return values.view(pa.uint64()) if pa.types.is_int64(values.type) else values  # the same bits


def _decoded(body: pa.Scalar, where: str) -> RGB:
    try:
        return shrunk(decode(body.as_py() or b""))
    except ImageError as error:
        raise StageError(f"a picture that is {error.code}", where, "replace it") from None


def _measured(request: Request, pictures: list[RGB]) -> pa.Array:
    assert request.measure is not None  # else nothing asks for pictures
    value = request.measure(pictures)
    if value.ndim == 1:
        return pa.array(value)
    flat = pa.array(np.ascontiguousarray(value, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, value.shape[1])


def _parquet(folder: Storage) -> list[Entry]:
    """Returns the folder's Parquet files by name; hidden ones are skipped, as hidden tasks are."""
    files = [e for e in folder.entries() if e.name.endswith(PARQUET) and e.name[0] != "."]
    return sorted(files, key=lambda entry: entry.name)
