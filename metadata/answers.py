"""A file of answers by the digests of their requests: sorted, whole blocks, an index at the end.

block    b"CLA1", then n, bytes of its answers, bytes compressed, CRC-32 (u32 each), n keys of 32
         bytes, zlib of n lengths (u32) and the answers
index    the first 8 bytes of each block's first key, where each block begins (u64 each)
end      how many blocks, where the index begins (u64), CRC-32 of the index, b"CLAI"

Keys are in order, and no two blocks share the first 8 bytes of a key, so an answer is one search
among 8 bytes a block and one read of a block. A damaged block is left out and the others stay;
where the index is damaged, the blocks are found by reading them all.

Of two answers to one request every reader takes the lesser by its bytes.
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
ReadAt = Callable[[int, int], bytes]  # so many bytes from an offset; fewer at the end

KEY_BYTES = 32
BLOCK_BYTES = 4096  # of answers: one look-up decompresses so much
PIECE_BYTES = 4 << 20  # of a file elsewhere: what a look-up fetches
MAGIC, END_MAGIC = b"CLA1", b"CLAI"
HEAD = struct.Struct("<4sIIII")
END = struct.Struct("<QQI4s")


def write_answers(pairs: Iterable[Pair], file: IO[bytes]) -> None:
    """Writes pairs that are sorted by key, each key once."""
    firsts, starts, at = array("Q"), array("Q"), file.tell()
    for block in _blocks(pairs):
        firsts.append(_prefix(block[0][0]))
        starts.append(at)
        at += file.write(_packed(block))
    index = firsts.tobytes() + starts.tobytes()
    file.write(index + END.pack(len(firsts), at, zlib.crc32(index), END_MAGIC))


def merged(sources: Iterable[Iterable[Pair]]) -> Iterator[Pair]:
    """The pairs of sorted sources, sorted, each key once."""
    last = b""
    for key, answer in heapq.merge(*sources):  # of two answers the lesser comes first
        if key != last:
            yield key, answer
            last = key


class AnswersFile:
    """Answers of one file, read as they are asked for; iterated, all of them in order of keys.

    In memory are 16 bytes a block, which is about 1 byte an answer of 200. `on_damage(what)` is
    told once of each damaged part.
    """

    def __init__(self, read_at: ReadAt, size: int, on_damage: Callable[[str], None]) -> None:
        self.size = size
        self._read_at, self._on_damage = read_at, on_damage
        self._told: set[int] = set()
        index = self._index()
        if index is None:
            on_damage("its index is damaged: its blocks are read one by one")
            index = self._searched()
        self._firsts, self._starts = index

    def find(self, key: bytes) -> bytes | None:
        """The answer; None where it is not there."""
        number = bisect_right(self._firsts, _prefix(key)) - 1
        block = self._block(number) if number >= 0 else None
        if block is None:
            return None
        count, raw_bytes, keys, packed = block
        at = keys.find(key)
        while at % KEY_BYTES and at > 0:  # across two keys
            at = keys.find(key, at + 1)
        if at < 0:
            return None
        raw = zlib.decompress(packed, bufsize=raw_bytes)
        before, (length,) = at // KEY_BYTES, struct.unpack_from("<I", raw, at // 8)
        start = 4 * count + sum(struct.unpack_from(f"<{before}I", raw))
        return raw[start : start + length]

    def __iter__(self) -> Iterator[Pair]:
        for number in range(len(self._firsts)):
            if block := self._block(number):
                yield from _pairs(*block)

    def _block(self, number: int) -> tuple[int, int, bytes, bytes] | None:
        """Count of answers, their bytes, keys, and the answers compressed; None where damaged."""
        start, end = self._starts[number], self._starts[number + 1]
        found = _opened(self._read_at(start, end - start))
        if found is None and number not in self._told:
            self._told.add(number)
            self._on_damage(f"{end - start} bytes at {start} are damaged, and left out")
        return found

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

    def _searched(self) -> tuple["array[int]", "array[int]"]:
        """The index, from reading all blocks that are whole; others are passed over."""
        firsts, starts, at = array("Q"), array("Q"), 0
        while at < self.size:
            head = self._read_at(at, HEAD.size)
            whole = b""
            if len(head) == HEAD.size and head[:4] == MAGIC:
                _, count, _, packed_bytes, _ = HEAD.unpack(head)
                whole = self._read_at(at, HEAD.size + KEY_BYTES * count + packed_bytes)
            if block := _opened(whole):
                firsts.append(_prefix(block[2]))
                starts.append(at)
                at += len(whole)
                continue
            window = self._read_at(at + 1, PIECE_BYTES)
            found = window.find(MAGIC)
            at += 1 + (found if found >= 0 else max(1, len(window) - len(MAGIC) + 1))
        return firsts, array("Q", [*starts, self.size])


def in_memory(data: bytes, on_damage: Callable[[str], None]) -> AnswersFile:
    """A small file that was read whole."""
    return AnswersFile(lambda at, size: data[at : at + size], len(data), on_damage)


def on_disk(path: str, on_damage: Callable[[str], None]) -> AnswersFile:
    """A file of this machine, open as long as the answers are."""
    file = os.open(path, os.O_RDONLY)
    return _reading(file, os.fstat(file).st_size, on_damage)


def in_scratch(pairs: Iterable[Pair]) -> AnswersFile:
    """A copy of pairs that are sorted, on scratch disk; it goes with what is returned."""
    file = _nameless()
    with open(file, "wb", closefd=False) as writing:
        write_answers(pairs, writing)

    def raise_it(what: str) -> None:
        raise OSError(f"scratch disk: {what}")

    return _reading(file, os.fstat(file).st_size, raise_it)


def elsewhere(
    folder: Storage, name: str, size: int, on_damage: Callable[[str], None]
) -> AnswersFile:
    """A file of an object store: pieces of it are fetched to scratch disk when first needed."""
    file = _nameless()
    there: set[int] = set()
    one_at_a_time = threading.Lock()

    def fetch(first: int, last: int) -> None:
        with one_at_a_time:
            for piece in {*range(first, last + 1)} - there:
                data = folder.read_at(name, piece * PIECE_BYTES, PIECE_BYTES)
                os.pwrite(file, data, piece * PIECE_BYTES)
                there.add(piece)

    return _reading(file, size, on_damage, fetch)


def _nameless() -> int:
    """The descriptor of an empty file on scratch disk, which ends with it."""
    file, path = tempfile.mkstemp(dir=scratch_folder())
    os.unlink(path)
    return file


def _reading(
    file: int,
    size: int,
    on_damage: Callable[[str], None],
    fetch: Callable[[int, int], None] = lambda first, last: None,
) -> AnswersFile:
    """The answers behind a descriptor, which is closed with them; `fetch` is told what is read."""

    def read_at(at: int, size: int) -> bytes:
        fetch(at // PIECE_BYTES, (at + size - 1) // PIECE_BYTES)
        return os.pread(file, size, at)

    answers = AnswersFile(read_at, size, on_damage)
    weakref.finalize(answers, os.close, file)
    return answers


def _blocks(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    """Pairs in blocks that share no first 8 bytes of a key."""
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
    """Count of answers, their bytes, keys, and the answers compressed; None where damaged."""
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
    at = 4 * count
    for number, length in enumerate(struct.unpack_from(f"<{count}I", raw)):
        yield keys[KEY_BYTES * number : KEY_BYTES * (number + 1)], raw[at : at + length]
        at += length


def _crc(count: int, raw_bytes: int, keys: bytes, packed: bytes) -> int:
    return zlib.crc32(packed, zlib.crc32(keys, zlib.crc32(struct.pack("<II", count, raw_bytes))))


def _prefix(key: bytes) -> int:
    return int.from_bytes(key[:8], "big")
