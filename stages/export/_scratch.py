"""Rows on scratch disk: written as they come, read in any order.

Pictures lie one after another in a file of their own, and are one array there, from which rows are
taken: each is copied once. The other columns lie beside them, in few batches.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import IMAGE

# Shapes: N rows, K those that are taken, B batches.

BATCH_BYTES = 4 << 20  # of a batch of other columns, about
MOST_BYTES = 2**31 - 1  # of pictures in one array, whose offsets have 32 bits


@dataclass
class Pictures:
    """What is known of the file of pictures: each row's bytes, and whether it has one."""

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
        """All of them, as they lie on disk."""
        end_N = np.cumsum(np.concatenate([[0], *self.sizes]), dtype=np.int64)
        valid = pa.concat_arrays(self.valid)
        mask = None if valid.true_count == len(valid) else valid.buffers()[1]
        data = pa.py_buffer(b"")  # what is empty cannot be mapped
        if end_N[-1]:
            data = stack.enter_context(pa.memory_map(str(path))).read_buffer()
        offsets = pa.py_buffer(end_N)
        return pa.Array.from_buffers(pa.large_binary(), len(valid), [mask, offsets, data])


class Stored:
    """Rows on scratch disk."""

    def __init__(
        self, batches: list[pa.RecordBatch], images: pa.LargeBinaryArray | None, schema: pa.Schema
    ) -> None:
        self.schema = schema
        self._batches, self._images = batches, images
        self._end_B = np.cumsum([len(batch) for batch in batches])

    def take(self, row_K: NDArray[np.int64]) -> pa.Table:
        """(K,) rows by number, as they were written."""
        batch_K = np.searchsorted(self._end_B, row_K, side="right")
        parts, place_K = [], np.empty(len(row_K), np.int64)
        taken = 0
        for number in np.unique(batch_K):
            wanted = np.flatnonzero(batch_K == number)
            batch = self._batches[number]
            start = self._end_B[number] - len(batch)
            parts.append(batch.take(pa.array(row_K[wanted] - start)))
            place_K[wanted] = taken + np.arange(len(wanted))
            taken += len(wanted)
        table = pa.Table.from_batches(parts).take(pa.array(place_K)).combine_chunks()
        if self._images is not None:
            images = pa.chunked_array(self._pictures(self._images, row_K), IMAGE.dtype)
            table = table.append_column(IMAGE.name, images)
        return table.select(self.schema.names)

    def _pictures(self, images: pa.LargeBinaryArray, row_K: NDArray[np.int64]) -> list[pa.Array]:
        """Those of these rows, in as many arrays as their bytes need."""
        taken = images.take(pa.array(row_K))
        if taken.nbytes < MOST_BYTES or len(row_K) < 2:
            return [taken.cast(IMAGE.dtype)]
        half = len(row_K) // 2
        return self._pictures(images, row_K[:half]) + self._pictures(images, row_K[half:])


def put(tables: Iterator[pa.Table], path: Path) -> None:
    """Writes the tables as one file of batches."""
    held: list[pa.Table] = []
    size = 0
    writer: pa.ipc.RecordBatchFileWriter | None = None
    for table in tables:
        held.append(table)
        size += table.nbytes
        writer = writer or pa.ipc.new_file(str(path), table.schema)
        if size >= BATCH_BYTES:
            writer.write_table(pa.concat_tables(held).combine_chunks())
            held, size = [], 0
    assert writer is not None  # of a table at least
    if held:
        writer.write_table(pa.concat_tables(held).combine_chunks())
    writer.close()


@contextmanager
def on_scratch(tables: Iterator[pa.Table], path: Path) -> Iterator[Stored]:
    """The rows of the tables, on disk while this is open; there is one table at least."""
    beside, images = (path.with_suffix(suffix) for suffix in (".arrow", ".images"))
    pictures, schema = Pictures(), pa.schema([])

    def without(file: BinaryIO) -> Iterator[pa.Table]:
        nonlocal schema
        for table in tables:
            schema = table.schema
            if schema.get_field_index(IMAGE.name) >= 0:
                pictures.add(table[IMAGE.name], file)
                table = table.drop_columns([IMAGE.name])
            yield table

    try:
        with images.open("wb") as file:
            put(without(file), beside)
        with ExitStack() as stack:
            source = stack.enter_context(pa.memory_map(str(beside)))
            reader = stack.enter_context(pa.ipc.open_file(source))
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            yield Stored(batches, pictures.array(images, stack) if pictures.sizes else None, schema)
    finally:
        for path in (beside, images):
            path.unlink(missing_ok=True)
