"""A tar that says neither when nor who, and JSON for it: the bytes of tarfile and json, sooner.

tarfile makes every header anew, in Python, and json indents there; a sample has three headers.
"""

import hashlib
import json
import tarfile
from collections.abc import Iterable
from typing import Any, BinaryIO

from clipmill.stages.export._columns import as_json

MODE = 0o644
NAME_BYTES, SIZE_DIGITS = 100, 11  # what a header has room for
BLANK = tarfile.TarInfo()
BLANK.mode = MODE
HEADER = BLANK.tobuf(tarfile.USTAR_FORMAT)  # of no name, and of no bytes
CHECKSUM = int(HEADER[148:154], 8)
text_of = json.JSONEncoder(default=as_json).encode


class TarWriter:
    """Writes members one after another, and hashes what it writes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._size = 0

    def add(self, members: Iterable[tuple[str, bytes]]) -> None:
        """Appends files: name and bytes of each."""
        parts: list[bytes] = []
        for name, data in members:
            parts += header(name, len(data)), data, bytes(-len(data) % tarfile.BLOCKSIZE)
        self._write(b"".join(parts))

    def close(self) -> tuple[str, int]:
        """Ends the tar; the SHA-256 of its bytes, and their number."""
        end = 2 * tarfile.BLOCKSIZE
        self._write(bytes(end + -(self._size + end) % tarfile.RECORDSIZE))
        return self._sha256.hexdigest(), self._size

    def _write(self, data: bytes) -> None:
        self._sha256.update(data)
        self._file.write(data)
        self._size += len(data)


def header(name: str, size: int) -> bytes:
    """The block before a member: the one of no name with name, size and checksum put in."""
    encoded, digits = name.encode(), b"%011o" % size
    if len(encoded) > NAME_BYTES or len(digits) > SIZE_DIGITS:
        long = tarfile.TarInfo(name)
        long.size, long.mode = size, MODE
        return long.tobuf(tarfile.USTAR_FORMAT)
    checksum = b"%06o" % (CHECKSUM + sum(encoded) + sum(digits) - SIZE_DIGITS * ord("0"))
    named = encoded.ljust(NAME_BYTES, b"\0") + HEADER[NAME_BYTES:124]
    return named + digits + HEADER[135:148] + checksum + HEADER[154:]


def indented(value: Any) -> str:
    """A value of an object that json.dumps indents by four, as it stands there."""
    if isinstance(value, list | dict):
        return json.dumps(value, indent=4, default=as_json).replace("\n", "\n    ")
    return text_of(value)


def json_of(row: dict[str, str]) -> bytes:
    """The object of these names and texts of values."""
    lines = [f"{text_of(name)}: {text}" for name, text in row.items()]
    return ("{\n    " + ",\n    ".join(lines) + "\n}").encode()
