"""Shuffles rows into files, for the exports of images.

A group reads whole source shards, chosen by hash, and orders its rows by hash, so each byte is
moved once. Its rows wait on scratch disk: memory is bounded by a batch of images.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import IMAGE, POSITION, SAMPLE_INDEX, SHARD, UID
from clipmill.metadata.uid import coin_hash, halves
from clipmill.pipeline.dataset import Context, Shards, Task
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.stage import Worker
from clipmill.stages.export._documents import describe, put_places
from clipmill.stages.export._leaving import Takes, Times, once, summed, tally

# Shapes: N rows of a group, S its samples (of `groups_of`: source shards), K rows taken, B batches.

COPY = "its copy"  # number of a sample among those of its row; unlike a pool's names
BATCH_ROWS = 64  # encoded images in memory
TALLIED_ROWS = 4096  # rows a batch, without images

# `shards`: numbers of its source shards; `first`, `start`: numbers of its first file and sample in
# the whole export; `rows`: the count of samples of each file.
Group = dict[str, Any]
# Writes one file, of a name without suffix, from rows in order and an empty table of their schema;
# returns its name, bytes and sha256, and its schema.
WriteFile = Callable[[str, Iterator[pa.Table], pa.Table, Task], tuple[dict[str, Any], pa.Schema]]
# Names a file, without suffix, by the count of files and its number.
Stem = Callable[[int, int], str]


def numbered(files: int, number: int) -> str:
    """Returns img2dataset's name of a file: its number, in five digits or more."""
    return f"{number:0{max(5, len(str(files - 1)))}d}"


def export_files(
    rows: Shards,
    takes: Takes,
    ctx: Context,
    layout: str,
    rows_per_file: int,
    write: WriteFile,
    times: Times = once,
    about: Mapping[str, Any] = MappingProxyType({}),
    stem: Stem = numbered,
) -> None:
    """Writes the exported rows, shuffled, into files; then dataset.json (`about` included)."""
    counting = partial(tally, rows.select(takes.tallied), takes, TALLIED_ROWS, times=times)
    tallies = ctx.map(counting, list(range(len(rows))))
    samples = [counts["samples"] for counts in tallies]
    groups = groups_of(samples, rows_per_file, ctx.worker)
    total = sum(len(group["rows"]) for group in groups)
    named = partial(stem, total)
    written = ctx.map(partial(write_group, rows, takes, write, named, times), groups)
    first = written[0] if written else {"columns": [], "features": {}}  # all groups have the same
    columns, features = first["columns"], first["features"]
    files = [file for group in written for file in group["files"]]
    counts = summed(tallies, takes)
    describe(ctx, layout, counts, columns, files, **features, **takes.about, **about)


def groups_of(samples_S: Sequence[int], rows_per_file: int, worker: Worker) -> list[Group]:
    """Groups source shards, in the order of their hashes, so that a group fills one file.

    A shard that fills more than one file is a group of several files of equal size.
    """
    numbers = pa.array([shard.to_bytes(16, "big") for shard in range(len(samples_S))], UID.dtype)
    order_S = np.argsort(
        coin_hash(numbers, seed=worker.seed, stage=worker.stage, purpose="group"), kind="stable"
    )
    grouped: list[list[int]] = []
    free = 0  # samples that the last group's file can still take
    for shard in (int(s) for s in order_S if samples_S[s]):
        if samples_S[shard] > free:
            grouped.append([])
            free = rows_per_file
        grouped[-1].append(shard)
        free -= samples_S[shard]
    groups: list[Group] = []
    first = start = 0
    for shards in grouped:
        rows = sum(samples_S[shard] for shard in shards)
        files = -(-rows // rows_per_file)
        sizes = [rows // files + (number < rows % files) for number in range(files)]
        groups.append({"shards": shards, "first": first, "start": start, "rows": sizes})
        first, start = first + files, start + rows
    return groups


def write_group(
    rows: Shards,
    takes: Takes,
    write: WriteFile,
    named: Callable[[int], str],
    times: Times,
    group: Group,
    task: Task,
) -> dict[str, Any]:
    """Writes the files of one group; returns them, their columns and Hugging Face's features."""
    files, columns, features = [], [], {}
    with shuffled(rows, takes, group, task.worker, times) as shuffle:
        start = 0
        for number, size in enumerate(group["rows"], group["first"]):
            tables = shuffle.tables(start, start + size)
            file, schema = write(named(number), tables, shuffle.schema.empty_table(), task)
            if b"huggingface" in (schema.metadata or {}):
                features = json.loads(schema.metadata[b"huggingface"])["info"]
            put_places(file["file"], shuffle.places(start, start + size), task)
            files.append({**file, "rows": size})
            columns = [[field.name, str(field.type)] for field in schema]
            start += size
    return {"files": files, "columns": columns, "features": features}


@contextmanager
def shuffled(
    rows: Shards, takes: Takes, group: Group, worker: Worker, times: Times = once
) -> Iterator["Shuffled"]:
    """Yields the group's samples in the order of their rows' hashes, to be read file by file."""
    uids: list[pa.Array] = []
    places: list[NDArray[np.int32]] = []  # (N, 2) of each batch
    samples: list[NDArray[np.integer]] = []

    def kept_rows() -> Iterator[pa.Table]:
        for shard in group["shards"]:
            for batch in rows.batches(shard, BATCH_ROWS):
                exported_N, _ = takes(batch)
                kept = batch if exported_N.all() else batch.filter(pa.array(exported_N))
                kept = takes.shown(_plain(kept))
                uids.extend(kept[UID.name].chunks)
                places.append(np.stack([kept[SHARD.name], kept[POSITION.name]], axis=1))
                samples.append(times(kept))
                yield kept

    with on_scratch(kept_rows(), worker.scratch / f"group-{group['first']}") as stored:
        uid = pa.chunked_array(uids, UID.dtype)
        coin_N = coin_hash(uid, seed=worker.seed, stage=worker.stage, purpose="order")
        place_N2 = np.concatenate(places)
        # By hash, then uid, then place: lexsort's last key counts most.
        order_N = np.lexsort((*place_N2.T[::-1], *halves(uid).T[::-1], coin_N))
        order_S = np.repeat(order_N, np.concatenate(samples)[order_N])
        if len(order_S) != sum(group["rows"]):
            raise StageError(
                found=f"{len(order_S)} samples, {sum(group['rows'])} when they were counted",
                where=f"source shards {group['shards']}",
                do="run again; the shards changed while they were read",
            )
        yield Shuffled(stored, order_S, place_N2, group["start"])


class Stored:
    """Rows on scratch disk, in the order of writing."""

    def __init__(
        self, batches: list[pa.RecordBatch], images: pa.LargeBinaryArray | None, schema: pa.Schema
    ) -> None:
        self.schema = schema
        self._batches, self._images = batches, images
        self._end_B = np.cumsum([len(batch) for batch in batches])

    def take(self, row_K: NDArray[np.int64]) -> pa.Table:
        """Returns (K,) rows by number, unchanged."""
        # From each batch apart: of a table, Arrow joins all vectors before it takes a few.
        batch_K = np.searchsorted(self._end_B, row_K, side="right")
        parts, place_K = [], np.empty(len(row_K), np.int64)
        taken = 0
        for number in np.unique(batch_K):
            in_batch = np.flatnonzero(batch_K == number)
            batch = self._batches[number]
            start = self._end_B[number] - len(batch)
            parts.append(batch.take(pa.array(row_K[in_batch] - start)))
            place_K[in_batch] = taken + np.arange(len(in_batch))
            taken += len(in_batch)
        table = pa.Table.from_batches(parts).take(pa.array(place_K)).combine_chunks()
        if self._images is not None:
            images = pa.chunked_array(self._pictures(self._images, row_K), IMAGE.dtype)
            table = table.append_column(IMAGE.name, images)
        return table.select(self.schema.names)

    def _pictures(self, images: pa.LargeBinaryArray, row_K: NDArray[np.int64]) -> list[pa.Array]:
        """Returns the images of rows, split into arrays that 32-bit offsets can address."""
        taken = images.take(pa.array(row_K))
        if taken.nbytes < MOST_BYTES or len(row_K) < 2:
            return [taken.cast(IMAGE.dtype)]
        half = len(row_K) // 2
        return self._pictures(images, row_K[:half]) + self._pictures(images, row_K[half:])


class Shuffled:
    """Rows on scratch disk, read in shuffled order; copies of a row are adjacent and numbered.

    `sample_index` counts the samples of all groups; this group's begin at `start`.
    """

    def __init__(
        self, stored: Stored, order_S: NDArray[np.int64], place_N2: NDArray[np.int32], start: int
    ) -> None:
        fields = [field for field in stored.schema if field.name != SAMPLE_INDEX.name]
        numbers = [pa.field(name, pa.int64()) for name in (SAMPLE_INDEX.name, COPY)]
        self.schema = pa.schema([*fields, *numbers])
        self._start = start
        self._stored = stored
        self._order_S = order_S
        self._place_N2 = place_N2
        is_first_S = np.diff(order_S, prepend=-1) != 0
        place_S = np.arange(len(order_S))
        self._copy_S = place_S - np.maximum.accumulate(np.where(is_first_S, place_S, 0))

    def places(self, start: int, stop: int) -> NDArray[np.int32]:
        """Returns (stop - start, 2), shard and position of these samples."""
        return self._place_N2[self._order_S[start:stop]]

    def tables(self, start: int, stop: int) -> Iterator[pa.Table]:
        """Yields samples `start` to `stop` of the order, in batches."""
        for first in range(start, stop, BATCH_ROWS):
            here = slice(first, min(first + BATCH_ROWS, stop))
            table = self._stored.take(self._order_S[here])
            if SAMPLE_INDEX.name in table.column_names:  # of a source export
                table = table.drop_columns([SAMPLE_INDEX.name])
            number_N = self._start + np.arange(here.start, here.stop)
            table = table.append_column(SAMPLE_INDEX.name, pa.array(number_N))
            yield table.append_column(COPY, pa.array(self._copy_S[here]))


def _plain(table: pa.Table) -> pa.Table:
    """Decodes dictionary columns, as the dictionaries of two batches may differ."""
    for i, each in enumerate(table.schema):
        if pa.types.is_dictionary(each.type):
            table = table.set_column(i, each.name, table[i].cast(each.type.value_type))
    return table


BATCH_BYTES = 4 << 20  # approximate size of a batch, without images
MOST_BYTES = 2**31 - 1  # of pictures in one array, whose offsets have 32 bits


@dataclass
class Pictures:
    """The index of a file of pictures: size of each row's picture, and whether it has one."""

    sizes: list[NDArray[np.int64]] = field(default_factory=list)
    valid: list[pa.Array] = field(default_factory=list)

    def add(self, image: pa.ChunkedArray, file: BinaryIO) -> None:
        """Appends a batch to the file."""
        for chunk in image.chunks:
            _, offsets, data = chunk.buffers()
            offset_N = np.frombuffer(offsets, np.int32)[chunk.offset :][: len(chunk) + 1]
            self.sizes.append((offset_N[1:] - offset_N[:-1]).astype(np.int64))
            self.valid.append(chunk.is_valid())
            if data and len(chunk):
                file.write(memoryview(data)[offset_N[0] : offset_N[-1]])

    def array(self, path: Path, stack: ExitStack) -> pa.LargeBinaryArray:
        """Returns all pictures as one array, memory-mapped."""
        end_N = np.cumsum(np.concatenate([[0], *self.sizes]), dtype=np.int64)
        valid = pa.concat_arrays(self.valid)
        mask = None if valid.true_count == len(valid) else valid.buffers()[1]
        data = pa.py_buffer(b"")  # an empty file cannot be mapped
        if end_N[-1]:
            data = stack.enter_context(pa.memory_map(str(path))).read_buffer()
        offsets = pa.py_buffer(end_N)
        return pa.Array.from_buffers(pa.large_binary(), len(valid), [mask, offsets, data])


def put(tables: Iterator[pa.Table], path: Path) -> None:
    """Writes the tables to one Arrow IPC file, in batches of about BATCH_BYTES."""
    waiting: list[pa.Table] = []
    size = 0
    writer: pa.ipc.RecordBatchFileWriter | None = None
    for table in tables:
        waiting.append(table)
        size += table.nbytes
        writer = writer or pa.ipc.new_file(str(path), table.schema)
        if size >= BATCH_BYTES:
            writer.write_table(pa.concat_tables(waiting).combine_chunks())
            waiting, size = [], 0
    assert writer is not None  # there is at least one table
    if waiting:
        writer.write_table(pa.concat_tables(waiting).combine_chunks())
    writer.close()


@contextmanager
def on_scratch(tables: Iterator[pa.Table], path: Path) -> Iterator[Stored]:
    """Writes one or more tables to scratch disk, images apart; yields the rows, deletes at exit."""
    table_path, images = (path.with_suffix(suffix) for suffix in (".arrow", ".images"))
    pictures, schema = Pictures(), pa.schema([])

    def without_images(file: BinaryIO) -> Iterator[pa.Table]:
        nonlocal schema
        for table in tables:
            schema = table.schema
            if schema.get_field_index(IMAGE.name) >= 0:
                pictures.add(table[IMAGE.name], file)
                table = table.drop_columns([IMAGE.name])
            yield table

    try:
        with images.open("wb") as file:
            put(without_images(file), table_path)
        with ExitStack() as stack:
            source = stack.enter_context(pa.memory_map(str(table_path)))
            reader = stack.enter_context(pa.ipc.open_file(source))
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            yield Stored(batches, pictures.array(images, stack) if pictures.sizes else None, schema)
    finally:
        for path in (table_path, images):
            path.unlink(missing_ok=True)
