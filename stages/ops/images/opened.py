"""Opens encoded images from the web, and weighs them before a pixel is decoded.

The format is told by the first bytes, never by a name or a content type. Decoders walk the parts of
a file one by one, some in Python, and a hostile file may be made of little else: pixels, passes
over them and parts are counted. A part is named by its kind, in the file's order: a marker of a
JPEG, a chunk of a PNG, a block of a GIF, the runs of a BMP; of a TIFF a directory, and a strip or
tile of its first one.
"""

import logging
import math
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import islice, repeat
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

RGB = NDArray[np.uint8]  # (H, W, 3)

MAX_PIXELS = 89_478_484  # LAION's bomb guard, which was Pillow's default
MAX_SCANS = 20  # of a picture with MAX_PIXELS; ten are ordinary, each goes over all pixels

warnings.filterwarnings("ignore", module=r"PIL\.")  # about odd EXIF
logging.getLogger("PIL").addHandler(logging.NullHandler())  # about odd TIFF
os.environ.setdefault("LIBTIFF_JPEG_MAX_ALLOWED_SCAN_NUMBER", str(MAX_SCANS))  # its own is 100

# Plugins, not Image.open: that one warns about sizes through a global, and MAX_PIXELS is ours.
PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "jpeg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
    "avif": AvifImagePlugin.AvifImageFile,
}
ORIENTATION_TAG = 0x0112
TILE_SIDES = 322, 323
START = re.compile(
    rb"(?P<jpeg>\xff\xd8\xff)|(?P<png>\x89PNG\r\n\x1a\n)|(?P<gif>GIF8[79]a)|(?P<webp>RIFF.{4}WEBP)"
    rb"|(?P<bmp>BM)|(?P<tiff>II\*\0|MM\0\*)|(?P<avif>.{4}ftypavi[fs])",
    re.DOTALL,
)
LAST_BYTES = {"jpeg": b"\xff\xd9", "png": b"IEND\xaeB`\x82", "gif": b";"}
DECLARED = {"webp": (4, 8), "bmp": (2, 0)}  # offset of the file's size, and bytes not counted in it

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
    kind, marker = b"", JPEG_MARKER.search(body, 2)
    while marker and kind != END:
        yield (kind := marker[1])
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
    offset, seen = int.from_bytes(body[4:8], order), set[int]()
    while offset and offset not in seen and offset + 2 <= len(body):
        yield DIRECTORY
        after = offset + 2 + 12 * int.from_bytes(body[offset : offset + 2], order)
        if not seen and after <= len(body):
            dtype = np.dtype("u2, u2, u4, u4").newbyteorder(order)
            entries = np.frombuffer(body[offset + 2 : after], dtype)
            are_offsets = np.isin(entries["f0"], (STRIP_OFFSETS, TILE_OFFSETS))
            yield from repeat(STRIP, int(entries["f2"][are_offsets].max(initial=0)))
        seen.add(offset)
        offset = int.from_bytes(body[after : after + 4], order)


def _bmp(body: bytes) -> Iterator[bytes]:
    if body[30:31] in (b"\x01", b"\x02"):  # its compression: 8 or 4 bits a pixel, in runs
        yield RUNS


WALKS = {"jpeg": _jpeg, "png": _png, "gif": _gif, "tiff": _tiff, "bmp": _bmp}


class ImageError(ValueError):
    """An image that gives no pixels; `code` says why.

    not_an_image: the first bytes belong to no format read here (HTML, SVG, HEIC, nothing at all).
    too_costly: more scans over its pixels, or parts of the file, than any ordinary picture has.
    truncated, undecodable, too_many_pixels: as they say.
    """

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An encoded image before a pixel is decoded."""

    image: ImageFile.ImageFile
    turn: int  # EXIF orientation, 1 to 8; 1 if there is none or it can't be read
    parts: Parts
    area: int  # pixels that are decoded at a time, at least


def weighed(body: bytes, max_pixels: int) -> Opened:
    """Returns the opened image; ImageError if decoding it costs more than it may."""
    image = opened(body)
    if image.area > max_pixels:
        raise ImageError("too_many_pixels")
    if image.area * image.parts.scans > MAX_SCANS * max(MAX_PIXELS, max_pixels):
        raise ImageError("too_costly")
    return image


def opened(body: bytes) -> Opened:
    """Returns the image, its parts counted; ImageError if it has too many, or is none."""
    found = START.match(body)
    if found is None:
        raise ImageError("not_an_image")
    name = found.lastgroup or ""
    parts = parts_of(name, body)
    if parts is None:
        raise ImageError("too_costly")
    try:
        image = PLUGINS[name](BytesIO(body))
        tags = getattr(image, "tag_v2", {})  # a TIFF's tile may be larger than the picture
        tile = math.prod(side for tag in TILE_SIDES if isinstance(side := tags.get(tag, 0), int))
        area = max(image.width * image.height, tile)
    except Exception as error:  # on hostile bytes decoders raise anything, KeyError to OSError
        raise ImageError(failure(name, body)) from error
    return Opened(image=image, turn=_orientation(name, image), parts=parts, area=area)


def failure(name: str, body: bytes) -> str:
    """Returns `truncated` if the bytes do not end as a file of that format does."""
    if name in DECLARED:
        offset, beyond = DECLARED[name]
        size = int.from_bytes(body[offset : offset + 4], "little")
        is_whole = len(body) >= max(offset + 4, size + beyond)
    else:
        is_whole = body.rstrip(b"\0\r\n").endswith(LAST_BYTES.get(name, b""))
    return "undecodable" if is_whole else "truncated"


def _orientation(name: str, image: ImageFile.ImageFile) -> int:
    if name == "tiff" or (name == "png" and "exif" not in image.info):
        return 1  # TIFF is turned as it loads; a PNG would be decoded in search of a late chunk
    try:
        turn = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # bad EXIF is no bad image
        return 1
    return turn if turn in range(1, 9) else 1
