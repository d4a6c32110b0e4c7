"""Reads a list of uids as tables of rows: DataComp's subset file, or text of one uid a line.

A piece of the file is read at a time, so that a list may be as long as its pool.
"""

from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.lib import format as npy

from clipmill.metadata.globs import open_pool
from clipmill.metadata.keys import redacted
from clipmill.metadata.limits import PARSE_ERRORS
from clipmill.metadata.schema import UID
from clipmill.metadata.uid import from_halves, from_hex
from clipmill.pipeline.errors import StageError

DTYPE = np.dtype("u8,u8")
PIECE_BYTES = 16 << 20  # a multiple of 16: no piece of a .npy cuts a uid
LINE_BYTES = 64  # of the longest line that may hold a uid


@dataclass(frozen=True)
class UidList:
    """The uids of each piece of a file, a table each."""

    path: str
    bounds: tuple[int, ...]  # offsets in the file: piece i is bounds[i] to bounds[i + 1]
    is_text: bool

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __iter__(self) -> Iterator[pa.Table]:
        return (self.table(index) for index in range(len(self)))

    @property
    def uids(self) -> int:
        """Returns the number of uids; for a text file, the most that its bytes can hold."""
        size = self.bounds[-1] - self.bounds[0]
        return (size + 1) // 33 if self.is_text else size // 16  # the last line may lack its end

    def table(self, index: int) -> pa.Table:
        start, stop = self.bounds[index : index + 2]
        storage, name = open_pool(self.path)
        with storage.open(name) as file:
            if self.is_text:
                return pa.table({UID.name: _of_lines(file, start, stop, redacted(self.path))})
            file.seek(start)
            halves_N2 = np.frombuffer(file.read(stop - start), "<u8").reshape(-1, 2)
        return pa.table({UID.name: from_halves(halves_N2)})


def opened(path: str, where: str) -> UidList:
    """Returns the list in a file; StageError if there is none, or the file is something else."""
    where = f"{where}: {redacted(path)}"
    storage, name = open_pool(path)
    try:
        with storage.open(name) as file:
            if file.read(6) != b"\x93NUMPY":
                return UidList(path, _bounds(0, file.size()), is_text=True)
            file.seek(0)
            begin, uids = _header(file)
            stored = (file.size() - begin) // DTYPE.itemsize
    except (OSError, *PARSE_ERRORS) as error:
        do = "give a .npy of dtype u8,u8, as export.uid_list writes it, or text of one uid a line"
        raise StageError(f"no list of uids: {error}", where, do) from None
    if stored < uids:
        raise StageError(f"{stored:,} uids, and its head says {uids:,}", where, "copy it again")
    return UidList(path, _bounds(begin, begin + uids * DTYPE.itemsize), is_text=False)


def _header(file: pa.NativeFile) -> tuple[int, int]:
    """Returns the offset of the first uid, and the number of uids. Unpickles nothing."""
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype != DTYPE or len(shape) != 1:
        raise ValueError(f"an array of {dtype}, shape {shape}")
    return file.tell(), shape[0]


def _bounds(start: int, stop: int) -> tuple[int, ...]:
    return *range(start, stop, PIECE_BYTES), stop


def _of_lines(file: pa.NativeFile, start: int, stop: int, where: str) -> pa.Array:
    """Returns the uids of the lines that begin between two offsets, blank lines left out."""
    begin = max(0, start - 1)  # with the end of the line before: the first line begins behind it
    file.seek(begin)
    data = file.read(stop - begin + LINE_BYTES)  # to the end of the last line
    first = data.find(b"\n") + 1 if start else data.startswith(BOM_UTF8) * len(BOM_UTF8)
    last = data.find(b"\n", stop - begin - 1)
    text = data[first : None if last < 0 else last].decode("latin-1")
    lines = pc.utf8_trim_whitespace(pc.split_pattern(pa.array([text]), "\n").flatten())
    uid = from_hex(lines)
    row = pc.and_(uid.is_null(), pc.not_equal(lines, "")).index(True).as_py()
    if row >= 0:
        where = f"{where}, line {_newlines(file, begin + first) + row + 1}"
        raise StageError(
            f"{lines[row].as_py()[:40]!r} is no uid", where, "write 32 hex digits a line"
        )
    return uid.drop_null()


def _newlines(file: pa.NativeFile, stop: int) -> int:
    """Returns the number of lines that end before an offset."""
    file.seek(0)
    ends = [*range(0, stop, PIECE_BYTES), stop]
    return sum(file.read(b - a).count(b"\n") for a, b in pairwise(ends))
