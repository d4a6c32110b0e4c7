"""Counts the parts of an encoded image without a decoder: its frames, and what decoding costs.

Decoders walk parts one by one, some in Python, and a hostile file may be made of little else. A
part is named by its kind, in the file's order: a marker of a JPEG, a chunk of a PNG, a block of a
GIF, the runs of a BMP; of a TIFF a directory, and a strip or tile of its first one.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, repeat
from typing import Literal

import numpy as np

# Not inside a scan: there FF is followed by 00, or by D0 to D7, a restart marker.
JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])", re.DOTALL)
SCAN, END, PROGRESSIVE = b"\xda", b"\xd9", b"\xc2"
TABLES = b"\xc4", b"\xdb", b"\xdd"  # Huffman tables, quantization tables, restarts
GIF_IMAGE, GIF_EXTENSION, GIF_END = b",", b"!", b";"
DIRECTORY, STRIP = b"directory", b"strip"
STRIP_OFFSETS, TILE_OFFSETS = 273, 324
# A JPEG's parts are joined by copying: of 20 MB in a thousand parts, ten gigabytes are copied.
MOST = {"jpeg": 1_000, "png": 100_000, "gif": 100_000, "tiff": 100_000, "bmp": 1}
RUNS, RUNS_COST = b"runs", 80  # pixels of a BMP packed as runs: read in Python, slow as 80 scans


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The kinds of a file's parts, in order; empty for a format whose decoder needs no guard.

    Error: of a file that breaks off or has false lengths, the parts up to there.
    """

    format: str
    kinds: list[bytes]

    @property
    def frames(self) -> int:
        """Returns the number of pictures in the file, 1 up; counted, not read from the header."""
        if self.format == "png":
            before = self.kinds[: self.kinds.index(b"IDAT")] if b"IDAT" in self.kinds else []
            if b"acTL" not in before:
                return 1
            # With none before IDAT, IDAT is a picture beside the animation.
            return self.kinds.count(b"fcTL") + (b"fcTL" not in before)
        return max(1, self.kinds.count({"gif": GIF_IMAGE, "tiff": DIRECTORY}.get(self.format, b"")))

    @property
    def scans(self) -> int:
        """Returns the cost of decoding, in passes over all pixels; 1 up."""
        if self.format == "bmp":
            return RUNS_COST if RUNS in self.kinds else 1
        return max(1, self.kinds.count(SCAN)) if self.format == "jpeg" else 1

    @property
    def is_clean_jpeg(self) -> bool:
        """Returns whether it ends after one scan; if progressive, after scans and tables alone."""
        first = self.kinds.index(SCAN) if SCAN in self.kinds else len(self.kinds)
        head, tail = self.kinds[:first], self.kinds[first:]
        if PROGRESSIVE not in head:
            return tail == [SCAN, END]
        return tail[-2:] == [SCAN, END] and {*tail} <= {SCAN, END, *TABLES}


def parts_of(name: str, body: bytes) -> Parts | None:
    """Returns the parts of a file in that format; None if it has more than any picture has."""
    walk, most = WALKS.get(name), MOST.get(name, 0)
    kinds = list(islice(walk(body), most + 1)) if walk else []
    return Parts(format=name, kinds=kinds) if len(kinds) <= most else None


def _jpeg(body: bytes) -> Iterator[bytes]:
    marker = JPEG_MARKER.search(body, 2)
    while marker:
        yield marker[1]
        if marker[1] == END:
            return
        offset = marker.end()  # its length follows, and counts itself
        marker = JPEG_MARKER.search(body, offset + int.from_bytes(body[offset : offset + 2]))


def _png(body: bytes) -> Iterator[bytes]:
    kind, offset = b"", 8
    while kind != b"IEND" and offset + 8 <= len(body):
        yield (kind := body[offset + 4 : offset + 8])
        offset += 12 + int.from_bytes(body[offset : offset + 4])


def _gif(body: bytes) -> Iterator[bytes]:
    """Yields images, extensions and each block of an extension; blocks of images are read in C."""
    offset = 13 + _palette(body[10:11])
    while (kind := body[offset : offset + 1]) not in (b"", GIF_END):
        yield kind
        if kind == GIF_IMAGE:
            offset += 11 + _palette(body[offset + 9 : offset + 10])
        else:
            offset += 2 if kind == GIF_EXTENSION else 1
        if kind in (GIF_IMAGE, GIF_EXTENSION):
            while offset < len(body) and (size := body[offset]):
                offset += 1 + size
                if kind == GIF_EXTENSION:
                    yield b""
            offset += 1


def _palette(flags: bytes) -> int:
    """Returns the bytes of a GIF's palette."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 128 else 0


def _tiff(body: bytes) -> Iterator[bytes]:
    order: Literal["little", "big"] = "little" if body[:1] == b"I" else "big"
    end = "<" if order == "little" else ">"
    offset, seen = int.from_bytes(body[4:8], order), set[int]()
    while offset and offset not in seen and offset + 2 <= len(body):
        yield DIRECTORY
        after = offset + 2 + 12 * int.from_bytes(body[offset : offset + 2], order)
        if not seen and after <= len(body):
            entries = np.frombuffer(body[offset + 2 : after], f"{end}u2, {end}u2, {end}u4, {end}u4")
            are_offsets = np.isin(entries["f0"], (STRIP_OFFSETS, TILE_OFFSETS))
            yield from repeat(STRIP, int(entries["f2"][are_offsets].max(initial=0)))
        seen.add(offset)
        offset = int.from_bytes(body[after : after + 4], order)


def _bmp(body: bytes) -> Iterator[bytes]:
    if body[30:31] in (b"\x01", b"\x02"):  # its compression: 8 or 4 bits a pixel, in runs
        yield RUNS


WALKS: dict[str, Callable[[bytes], Iterator[bytes]]] = {
    "jpeg": _jpeg,
    "png": _png,
    "gif": _gif,
    "tiff": _tiff,
    "bmp": _bmp,
}
