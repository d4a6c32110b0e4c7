"""Writes a shard's Parquet file as a stream, always to the same bytes, then its record.

Row groups end at 4,096 rows or 16 MB, whichever comes first at the end of a batch, so that readers
of images need little memory. Pages carry checksums, and a file's name its digest.
"""

import contextlib
import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.metadata.record import Record, data_name
from clipmill.metadata.schema import IMAGE, REASON, UID
from clipmill.metadata.storage import Storage

IMAGES = (IMAGE.name, f"{IMAGE.name}.bytes")  # leaves that are compressed already
GROUP_ROWS = 4096
GROUP_BYTES = 16 << 20
LIST_TYPES = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)


class ShardWriter:
    """Writes batches to a scratch file, hashing and counting as they pass.

    Without page checksums it writes the bytes of versions that had none.
    """

    def __init__(self, path: Path, schema: pa.Schema, page_checksums: bool = True) -> None:
        self.schema = schema
        self.page_checksums = page_checksums
        self.rows = 0
        self.counts: dict[str, int] = {}
        self._sink = _HashedFile(path)
        self._uids = hashlib.sha256()
        self._pending: list[pa.Table] = []
        self._pending_rows = self._pending_bytes = 0
        self._writer = pq.ParquetWriter(
            self._sink.stream, schema, write_page_checksum=page_checksums, **_writer_options(schema)
        )

    def add(self, batch: pa.Table) -> None:
        """Adds rows of the writer's schema."""
        self.rows += len(batch)
        self._pending.append(batch)
        self._pending_rows += len(batch)
        is_full = self._pending_rows >= GROUP_ROWS
        if not is_full:  # counting bytes is slow
            self._pending_bytes += batch.nbytes
            is_full = self._pending_bytes >= GROUP_BYTES
        if is_full:
            self._flush()

    def close(self) -> tuple[str, int]:
        """Ends the file; returns its SHA-256 and size in bytes."""
        if self._pending:
            self._flush()
        self._writer.close()
        self._sink.hash()
        self._sink.close()
        return self._sink.sha256.hexdigest(), self._sink.size

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the scratch file if `close` did not."""
        with contextlib.suppress(OSError):  # a full disk takes no footer either
            self._writer.close()
        with contextlib.suppress(OSError):
            self._sink.close()

    @property
    def uid_sha256(self) -> str:
        return self._uids.hexdigest()[:32]

    def _flush(self) -> None:
        group = pa.concat_tables(self._pending).unify_dictionaries().combine_chunks()
        types = {field.name: field.type for field in group.schema}  # text in an export
        for chunk in group[UID.name].chunks if types[UID.name] == UID.dtype else ():
            self._uids.update(
                memoryview(chunk.buffers()[1])[chunk.offset * 16 : (chunk.offset + len(chunk)) * 16]
            )
        if types.get(REASON.name) == REASON.dtype:
            _count(group[REASON.name], self.counts)
        self._writer.write_table(group, row_group_size=max(1, len(group)))
        self._sink.hash()
        self._pending = []
        self._pending_rows = self._pending_bytes = 0


def store(folder: Storage, writer: ShardWriter, scratch: Path, record: dict[str, Any]) -> Record:
    """Closes and stores a shard, data before record; `record` has the record's other fields."""
    sha256, size = writer.close()
    data = data_name(record["shard"], record.get("number", 0), sha256)
    stored = Record(
        data=data,
        size_bytes=size,
        sha256=sha256[:32],
        uid_sha256=writer.uid_sha256,
        counts=dict(sorted(writer.counts.items())),
        computed=writer.rows,
        page_checksums=writer.page_checksums,
        **record,
    )
    folder.commit(scratch, data)
    folder.put(stored.name, stored.to_json().encode(), point="record")
    return stored


def _count(reason: pa.ChunkedArray, counts: dict[str, int]) -> None:
    for chunk in reason.chunks:
        if chunk.null_count:
            counts[""] = counts.get("", 0) + chunk.null_count
        if chunk.null_count < len(chunk):
            codes = chunk.dictionary.to_pylist()
            rows = np.bincount(chunk.indices.drop_null().to_numpy(), minlength=len(codes))
            for code, number in zip(codes, rows.tolist(), strict=True):
                if number:
                    counts[code] = counts.get(code, 0) + number


@lru_cache
def _writer_options(schema: pa.Schema) -> dict[str, Any]:
    """Returns the writer's options; cached, as each shard of a stage asks."""
    leaves = [leaf for field in schema for leaf in _leaf_paths(field.name, field.type)]
    return {
        "compression": {name: "NONE" if name in IMAGES else "ZSTD" for name in leaves},
        "use_dictionary": [
            field.name
            for field in schema
            if pa.types.is_string(field.type) or pa.types.is_dictionary(field.type)
        ],
        "write_statistics": False,  # readers here scan; uids are random
    }


def _leaf_paths(path: str, dtype: pa.DataType) -> list[str]:
    """Returns the Parquet leaf columns, which key the compression."""
    if any(is_list(dtype) for is_list in LIST_TYPES):
        return _leaf_paths(f"{path}.list.element", dtype.value_type)
    if pa.types.is_map(dtype):
        pair = f"{path}.key_value"
        return _leaf_paths(f"{pair}.key", dtype.key_type) + _leaf_paths(
            f"{pair}.value", dtype.item_type
        )
    if pa.types.is_struct(dtype):
        return [
            leaf
            for index in range(dtype.num_fields)
            for leaf in _leaf_paths(f"{path}.{dtype.field(index).name}", dtype.field(index).type)
        ]
    return [path]


class _HashedFile:
    """A file that Arrow writes, and its SHA-256; its bytes do not pass through Python.

    It is read back from the page cache, in blocks that fit the processor's cache.
    """

    def __init__(self, path: Path) -> None:
        # Parquet writes headers of 20 bytes between pages: a buffer makes fewer calls.
        self.stream = pa.BufferedOutputStream(pa.OSFile(str(path), "wb"), 1 << 20)
        self.sha256 = hashlib.sha256()
        self.size = 0
        self._stored = path.open("rb", buffering=0)
        self._block = memoryview(bytearray(1 << 18))

    def hash(self) -> None:
        """Hashes the bytes written since the last call."""
        self.stream.flush()
        while read := self._stored.readinto(self._block):
            self.sha256.update(self._block[:read])
            self.size += read

    def close(self) -> None:
        self._stored.close()
        self.stream.close()
