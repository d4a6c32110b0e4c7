"""A file format for answers keyed by request digest: sorted compressed blocks, then an index.

block    b"CLA1"; count n, raw bytes, compressed bytes, CRC-32 (u32 each); n keys of 32 bytes;
         zlib of n lengths (u32) and the answers
index    first 8 bytes of each block's first key, then each block's offset (u64 each)
end      number of blocks and offset of the index (u64), CRC-32 of the index (u32), b"CLAI"

Keys are sorted, and no two blocks share a key's first 8 bytes. So a look-up is one binary search
over 8 bytes a block and one block read. Damaged blocks are skipped; if the index is damaged, the
file is scanned for its blocks.

If a request has two answers, every reader takes the smaller one, bytewise.
"""

import heapq
import os
import struct
import tempfile
import threading
import weakref
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from typing import IO

from clipmill.metadata.scratch import scratch_folder
from clipmill.metadata.storage import Storage

Pair = tuple[bytes, bytes]  # a key and its answer
ReadAt = Callable[[int, int], bytes]  # (offset, size) to bytes; fewer at the end of the file

KEY_BYTES = 32
BLOCK_BYTES = 4096  # of answers in a block: a look-up decompresses one block
PIECE_BYTES = 4 << 20  # fetched at a time from an object store
MAGIC, END_MAGIC = b"CLA1", b"CLAI"
HEAD = struct.Struct("<4sIIII")
END = struct.Struct("<QQI4s")


def write_answers(pairs: Iterable[Pair], file: IO[bytes]) -> None:
    """Writes pairs that are sorted by key, each key once."""
    firsts, starts, offset = array("Q"), array("Q"), file.tell()
    for block in _blocks(pairs):
        firsts.append(_prefix(block[0][0]))
        starts.append(offset)
        offset += file.write(_packed(block))
    index = firsts.tobytes() + starts.tobytes()
    file.write(index + END.pack(len(firsts), offset, zlib.crc32(index), END_MAGIC))


def merged(sources: Iterable[Iterable[Pair]]) -> Iterator[Pair]:
    """Merges sorted sources: yields pairs in key order, each key once."""
    last = b""
    for key, answer in heapq.merge(*sources):  # equal keys: the smaller answer comes first
        if key != last:
            yield key, answer
            last = key


class AnswersFile:
    """The answers of one file: looked up by key, or iterated in key order.

    Memory is 16 bytes a block, about 1 byte per answer of 200 bytes. `on_damage(what)` is called
    once for each damaged part.
    """

    def __init__(self, read_at: ReadAt, size: int, on_damage: Callable[[str], None]) -> None:
        self.size = size
        self._read_at, self._on_damage = read_at, on_damage
        self._reported: set[int] = set()
        index = self._index()
        if index is None:
            on_damage("its index is damaged: its blocks are read one by one")
            index = self._rebuilt_index()
        self._firsts, self._starts = index

    def find(self, key: bytes) -> bytes | None:
        """Returns the answer to a key, or None."""
        number = bisect_right(self._firsts, _prefix(key)) - 1
        block = self._block(number) if number >= 0 else None
        if block is None:
            return None
        count, raw_bytes, keys, packed = block
        offset = keys.find(key)
        while offset > 0 and offset % KEY_BYTES:  # a match across two keys
            offset = keys.find(key, offset + 1)
        if offset < 0:
            return None
        raw = zlib.decompress(packed, bufsize=raw_bytes)
        before, (length,) = offset // KEY_BYTES, struct.unpack_from("<I", raw, offset // 8)
        start = 4 * count + sum(struct.unpack_from(f"<{before}I", raw))
        return raw[start : start + length]

    def __iter__(self) -> Iterator[Pair]:
        for number in range(len(self._firsts)):
            if block := self._block(number):
                yield from _pairs(*block)

    def _block(self, number: int) -> tuple[int, int, bytes, bytes] | None:
        """Reads a block: answer count, raw size, keys, compressed answers; None if damaged."""
        start, end = self._starts[number], self._starts[number + 1]
        block = _opened(self._read_at(start, end - start))
        if block is None and number not in self._reported:
            self._reported.add(number)
            self._on_damage(f"{end - start} bytes at {start} are damaged, and left out")
        return block

    def _index(self) -> tuple["array[int]", "array[int]"] | None:
        end = self._read_at(max(0, self.size - END.size), END.size)
        if len(end) < END.size:
            return None
        count, start, crc, magic = END.unpack(end)
        if magic != END_MAGIC or start + 16 * count + END.size != self.size:
            return None
        index = self._read_at(start, 16 * count)
        if zlib.crc32(index) != crc:
            return None
        return array("Q", index[: 8 * count]), array("Q", [*array("Q", index[8 * count :]), start])

    def _rebuilt_index(self) -> tuple["array[int]", "array[int]"]:
        """Rebuilds the index by scanning the file; damaged blocks are skipped."""
        firsts, starts, offset = array("Q"), array("Q"), 0
        while offset < self.size:
            head = self._read_at(offset, HEAD.size)
            whole = b""
            if len(head) == HEAD.size and head[:4] == MAGIC:
                _, count, _, packed_bytes, _ = HEAD.unpack(head)
                stated = HEAD.size + KEY_BYTES * count + packed_bytes
                whole = self._read_at(offset, min(stated, self.size - offset))  # may be damaged
            if block := _opened(whole):
                firsts.append(_prefix(block[2]))
                starts.append(offset)
                offset += len(whole)
                continue
            window = self._read_at(offset + 1, PIECE_BYTES)
            distance = window.find(MAGIC)  # which may lie across this window's end
            offset += 1 + (distance if distance >= 0 else max(1, len(window) - len(MAGIC) + 1))
        return firsts, array("Q", [*starts, self.size])


def from_bytes(data: bytes, on_damage: Callable[[str], None]) -> AnswersFile:
    """Opens a small file that was read whole."""
    return AnswersFile(lambda offset, size: data[offset : offset + size], len(data), on_damage)


def open_local(path: str, on_damage: Callable[[str], None]) -> AnswersFile:
    """Opens a local file for as long as the returned object lives."""
    file = os.open(path, os.O_RDONLY)
    return _over_descriptor(file, os.fstat(file).st_size, on_damage)


def write_scratch(pairs: Iterable[Pair]) -> AnswersFile:
    """Copies sorted pairs to scratch disk; the copy is deleted with the returned object."""
    file = _unlinked_file()
    with open(file, "wb", closefd=False) as writing:
        write_answers(pairs, writing)

    def fail(what: str) -> None:
        raise OSError(f"scratch disk: {what}")

    return _over_descriptor(file, os.fstat(file).st_size, fail)


def open_remote(
    folder: Storage, name: str, size: int, on_damage: Callable[[str], None]
) -> AnswersFile:
    """Opens a file of an object store; pieces are fetched to scratch disk on first use."""
    file = _unlinked_file()
    fetched: set[int] = set()
    lock = threading.Lock()

    def fetch(first: int, last: int) -> None:
        with lock:
            for piece in {*range(first, last + 1)} - fetched:
                data = folder.read_at(name, piece * PIECE_BYTES, PIECE_BYTES)
                os.pwrite(file, data, piece * PIECE_BYTES)
                fetched.add(piece)

    return _over_descriptor(file, size, on_damage, fetch)


def _unlinked_file() -> int:
    """Returns the descriptor of an empty, unlinked file on scratch disk."""
    file, path = tempfile.mkstemp(dir=scratch_folder())
    os.unlink(path)
    return file


def _over_descriptor(
    file: int,
    size: int,
    on_damage: Callable[[str], None],
    fetch: Callable[[int, int], None] = lambda first, last: None,
) -> AnswersFile:
    """Opens a descriptor, closed with the answers; each read first calls `fetch` on its pieces."""

    def read_at(offset: int, size: int) -> bytes:
        fetch(offset // PIECE_BYTES, (offset + size - 1) // PIECE_BYTES)
        return os.pread(file, size, offset)

    answers = AnswersFile(read_at, size, on_damage)
    weakref.finalize(answers, os.close, file)
    return answers


def _blocks(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    """Cuts pairs into blocks; no two blocks share a key's first 8 bytes."""
    block: list[Pair] = []
    size = 0
    for pair in pairs:
        if size >= BLOCK_BYTES and pair[0][:8] != block[-1][0][:8]:
            yield block
            block, size = [], 0
        block.append(pair)
        size += len(pair[1])
    if block:
        yield block


def _packed(block: list[Pair]) -> bytes:
    lengths = struct.pack(f"<{len(block)}I", *(len(answer) for _, answer in block))
    raw = lengths + b"".join(answer for _, answer in block)
    packed = zlib.compress(raw)
    keys = b"".join(key for key, _ in block)
    crc = _crc(len(block), len(raw), keys, packed)
    return HEAD.pack(MAGIC, len(block), len(raw), len(packed), crc) + keys + packed


def _opened(data: bytes) -> tuple[int, int, bytes, bytes] | None:
    """Parses a block: answer count, raw size, keys, compressed answers; None if damaged."""
    if len(data) < HEAD.size:
        return None
    magic, count, raw_bytes, packed_bytes, crc = HEAD.unpack_from(data)
    split = HEAD.size + KEY_BYTES * count
    keys, packed = data[HEAD.size : split], data[split : split + packed_bytes]
    if magic != MAGIC or not count or crc != _crc(count, raw_bytes, keys, packed):
        return None
    return count, raw_bytes, keys, packed


def _pairs(count: int, raw_bytes: int, keys: bytes, packed: bytes) -> Iterator[Pair]:
    raw = zlib.decompress(packed, bufsize=raw_bytes)
    offset = 4 * count
    for number, length in enumerate(struct.unpack_from(f"<{count}I", raw)):
        yield keys[KEY_BYTES * number : KEY_BYTES * (number + 1)], raw[offset : offset + length]
        offset += length


def _crc(count: int, raw_bytes: int, keys: bytes, packed: bytes) -> int:
    return zlib.crc32(packed, zlib.crc32(keys, zlib.crc32(struct.pack("<II", count, raw_bytes))))


def _prefix(key: bytes) -> int:
    return int.from_bytes(key[:8], "big")
