"""Keeps a stage's answers until their shard is stored, so that a resume asks only for the rest.

`kept/000123/<parents>.p0.00001-<digest>.parquet` holds answered rows of pass 0 of shard 123, with
their positions. All files of a pass are deleted when its record is stored.
"""

import contextlib
import re
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.fingerprint import digest
from clipmill.metadata.parquet_file import read_at, read_file
from clipmill.metadata.record import digest_in
from clipmill.metadata.schema import POSITION, REASON
from clipmill.metadata.shard import ShardWriter
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.declared import stored_schema
from clipmill.pipeline.errors import LostLockError, RetryableError
from clipmill.pipeline.planning.planned import PlannedStage

FOLDER = "kept"
MOST_FILES = 64  # a shard: a file is stored once it has a 64th of the rows …
FILE_BYTES = 64 << 20  # … or this many bytes, whichever comes first
READ_ROWS = 65_536
NAME = re.compile(r"(\d+)-[0-9a-f]{16}\.parquet")

# Shapes: N rows of the shard, K those of a batch that are computed.


class PartialResults:
    """A stage's answers in one pass over a shard, of this attempt and of earlier ones.

    A row whose reason is transient counts as not answered. Files that are damaged or of other
    parents are deleted.
    """

    def __init__(
        self,
        folder: Storage,
        planned: PlannedStage,
        shard: int,
        number: int,
        parents: dict[str, str],
        rows: int,
    ) -> None:
        self._folder = folder
        self._below = f"{FOLDER}/{shard:06d}"
        self._prefix = f"{digest(parents)[:12]}.p{number}."
        self._schema = stored_schema(planned.stage, sparse=True)
        self._due_rows = rows / MOST_FILES
        self._files: list[str] = []
        self._file_N = np.full(rows, -1, np.int32)  # index of the file with a row; -1: none
        self._row_N = np.zeros(rows, np.int64)  # index of the row in that file
        self._last = 0  # number of the last file
        self._open = ExitStack()
        self._writer: ShardWriter | None = None
        self._path: Any = None
        self._bytes = 0
        for entry in sorted(folder.entries(self._below), key=lambda entry: entry.name):
            if not self._take(entry.name, planned.stage.transient):
                folder.delete(f"{self._below}/{entry.name}")

    def has(self, position_K: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Returns (K,) True for rows that an earlier attempt has answered."""
        return self._file_N[position_K] >= 0

    def rows(self, position_K: NDArray[np.int64]) -> pa.Table:
        """Reads the answers to rows it has, in the columns that the stage declares."""
        names = [name for name in self._schema.names if name != POSITION.name]
        file_K = self._file_N[position_K]
        tables, places = [self._schema.empty_table().select(names)], [np.zeros(0, np.int64)]
        for file in np.unique(file_K):
            here = np.flatnonzero(file_K == file)
            try:
                rows = self._row_N[position_K[here]]
                tables.append(read_at(self._folder, self._files[file], names, rows))
            except DamagedError as damaged:  # since it was opened; the next attempt ignores it
                raise RetryableError(damaged.found, damaged.place, "look at the disk") from damaged
            places.append(here)
        order = np.argsort(np.concatenate(places))
        return pa.concat_tables(tables).unify_dictionaries().take(pa.array(order))

    def add(self, position_K: NDArray[np.int64], answer: pa.Table) -> None:
        """Adds answers in row order; stores a file once there are enough."""
        if self._writer is None:
            self._path = self._open.enter_context(self._folder.scratch(f"{self._below}/new"))
            self._writer = self._open.enter_context(ShardWriter(self._path, self._schema))
        position = pa.array(position_K.astype(np.int32))
        self._writer.add(answer.add_column(1, POSITION.name, position))
        self._bytes += answer.nbytes
        if self._writer.rows >= self._due_rows or self._bytes >= FILE_BYTES:
            self._put()

    def drop(self) -> None:
        """Deletes all files; called once the record of the pass is stored."""
        if self._last:
            self._folder.delete_folder(self._below)

    def __enter__(self) -> "PartialResults":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._open:
            if kind is not None:  # without an error, the shard itself is stored
                with contextlib.suppress(OSError, LostLockError):
                    self._put()

    def _put(self) -> None:
        writer, self._writer = self._writer, None  # tried once, even if that fails
        if writer is None:
            return
        sha256, _ = writer.close()
        self._last += 1
        name = f"{self._below}/{self._prefix}{self._last:05d}-{sha256[:16]}.parquet"
        self._folder.commit(self._path, name, "kept")
        self._open.close()
        self._bytes = 0

    def _take(self, name: str, transient: tuple[str, ...]) -> bool:
        """Takes in a file's answers; returns False if it is damaged or not of this pass."""
        match = NAME.fullmatch(name.removeprefix(self._prefix))
        if not name.startswith(self._prefix) or match is None:
            return False
        path = f"{self._below}/{name}"
        types = dict(zip(self._schema.names, self._schema.types, strict=True))
        columns = [POSITION.name, REASON.name]
        try:
            if not self._folder.sha256(path).startswith(digest_in(name)):
                return False
            table = pa.concat_tables(read_file(self._folder, path, columns, READ_ROWS, types))
        except DamagedError:
            return False
        again = pc.is_in(table[REASON.name].cast(pa.string()), pa.array(transient, pa.string()))
        row = np.flatnonzero(~again.to_numpy(zero_copy_only=False))
        position = table[POSITION.name].to_numpy()[row]
        self._file_N[position], self._row_N[position] = len(self._files), row
        self._files.append(path)
        self._last = int(match[1])
        return True
