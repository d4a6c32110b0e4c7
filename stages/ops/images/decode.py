"""Decodes images, and reads their headers.

Bytes come from the web: the format is told by the first bytes, never by a name or a content type,
and pixels, passes over them and parts of the file are counted before any are decoded.
"""

import ctypes
import logging
import math
import os
import platform
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from clipmill.stages.ops.images.parts import Parts, parts_of

# Shapes: H height, W width, 3 or 4 channels; N rows of a batch.

RGB = NDArray[np.uint8]

MAX_PIXELS = 89_478_484  # LAION's bomb guard, which was Pillow's default
LARGE_PIXELS = 1 << 24  # if memory runs out, only a picture with more is given up
MAX_SCANS = 20  # of a picture with MAX_PIXELS; ten are ordinary, each goes over all pixels

warnings.filterwarnings("ignore", module=r"PIL\.")  # about odd EXIF
logging.getLogger("PIL").addHandler(logging.NullHandler())  # about odd TIFF
os.environ.setdefault("LIBTIFF_JPEG_MAX_ALLOWED_SCAN_NUMBER", str(MAX_SCANS))  # its own is 100

# Settings of glibc, where it is: freed memory is kept, messages are silenced.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)

libc = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
if libc:
    libc.fopen.restype = ctypes.c_void_p
    _stderr = ctypes.c_void_p.in_dll(libc, "stderr")
    _shown, _nowhere = _stderr.value, libc.fopen(b"/dev/null", b"w")
_silencing = threading.Lock()
_silent = 0  # callers that are silenced

if libc:
    # Freed buffers of up to 128 MB are used again, of 32 MB where glibc allows no more. By default
    # the system takes each back and gives it out page by page: a third of decoding time.
    if not libc.mallopt(M_MMAP_THRESHOLD, 128 << 20):
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
    libc.mallopt(M_TRIM_THRESHOLD, 256 << 20)
cv2.setNumThreads(1)  # workers run side by side; a resize must not take all their cores

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
REDUCED = {  # not their COLOR flags, which ask for BGR
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
SPARE = 1.5  # a JPEG decoded smaller keeps so many times the size that it is wanted at
ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")


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
class Header:
    """The header of an encoded image; sides as shown, after its EXIF orientation."""

    format: str
    width: int
    height: int
    frames: int
    is_plain: bool  # one upright opaque frame in grey or RGB: any reader sees these pixels


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An encoded image before a pixel is decoded."""

    format: str
    image: ImageFile.ImageFile
    parts: Parts
    area: int  # pixels that are decoded at a time, at least

    @property
    def is_plain_jpeg(self) -> bool:
        return self.format == "jpeg" and self.image.mode != "CMYK" and self.parts.is_clean_jpeg


def probe(body: bytes) -> Header:
    """Returns the header, without decoding a pixel."""
    opened = _opened(body)
    name, image = opened.format, opened.image
    turn = _orientation(name, image)
    width, height = image.size if turn < 5 else image.size[::-1]
    # The decoders of these two count frames, in C.
    frames = getattr(image, "n_frames", 1) if name in ("webp", "avif") else opened.parts.frames
    plain = turn == 1 and frames == 1 and image.mode in ("L", "RGB") and not _has_alpha(image)
    return Header(format=name, width=width, height=height, frames=frames, is_plain=plain)


def decode(body: bytes, max_pixels: int = MAX_PIXELS, shrink: int = 1) -> RGB:
    """Returns (H, W, 3) the first frame, upright, in 8-bit RGB, transparency on white.

    A JPEG is decoded smaller by `shrink`, 2, 4 or 8, sides rounded, from the low frequencies of its
    blocks; CMYK and other formats keep their size.

    Error: colour profiles are ignored; CMYK is read as Adobe writes it, inverted, as Pillow and
    OpenCV do; 16 bits are cut to the upper 8; a corrupt file may still decode, one in seven of
    those in the demo pool does.
    """
    opened = weighed(body, max_pixels)
    turn = _orientation(opened.format, opened.image)
    try:
        with silence():
            rgb = _of_jpeg(body, shrink, *opened.image.size) if opened.is_plain_jpeg else None
            if rgb is None:  # Pillow says what is wrong
                opened.image.load()
                rgb = _rgb(opened.image)
        return _upright(rgb, turn)
    except MemoryError:
        if opened.area < LARGE_PIXELS:  # any picture would fail here: no fault of this one
            raise
        raise ImageError("too_many_pixels") from None
    except Exception as error:  # see _opened
        raise ImageError(_failure(opened.format, body)) from error


def weighed(body: bytes, max_pixels: int) -> Opened:
    """Returns the opened image; ImageError if decoding it costs more than it may."""
    opened = _opened(body)
    if opened.area > max_pixels:
        raise ImageError("too_many_pixels")
    if opened.area * opened.parts.scans > MAX_SCANS * max(MAX_PIXELS, max_pixels):
        raise ImageError("too_costly")
    return opened


def _opened(body: bytes) -> Opened:
    name = format_of(body)
    if name is None:
        raise ImageError("not_an_image")
    parts = parts_of(name, body)
    if parts is None:
        raise ImageError("too_costly")
    try:
        image = PLUGINS[name](BytesIO(body))
        area = max(image.width * image.height, _tile_area(image))
    except Exception as error:  # on hostile bytes decoders raise anything, KeyError to OSError
        raise ImageError(_failure(name, body)) from error
    return Opened(format=name, image=image, parts=parts, area=area)


def _failure(name: str, body: bytes) -> str:
    return "undecodable" if is_whole(name, body) else "truncated"


def _of_jpeg(body: bytes, shrink: int, width: int, height: int) -> RGB | None:
    """Returns OpenCV's pixels, the same as Pillow's, in 3/4 of the time; None for a bad file."""
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION | REDUCED[shrink]
    try:
        rgb = cv2.imdecode(np.frombuffer(body, np.uint8), flags)
    except cv2.error:
        return None
    if rgb is not None:  # sides come rounded up: less than half of a last row may be picture
        rgb = rgb[: max(1, round(height / shrink)), : max(1, round(width / shrink))]
    return rgb  # type: ignore[return-value]  # 8 bits


def _tile_area(image: ImageFile.ImageFile) -> int:
    """Returns the pixels of a TIFF's tile, which may be larger than the picture."""
    tags = getattr(image, "tag_v2", {})
    sides = [tags.get(tag, 0) for tag in TILE_SIDES]
    return math.prod(side for side in sides if isinstance(side, int))


def _orientation(name: str, image: ImageFile.ImageFile) -> int:
    """Returns the EXIF orientation, 1 to 8; 1 if there is none or it can't be read."""
    if name == "tiff" or (name == "png" and "exif" not in image.info):
        return 1  # TIFF is turned as it loads; a PNG would be decoded in search of a late chunk
    try:
        turn = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # bad EXIF is no bad image
        return 1
    return turn if turn in range(1, 9) else 1


def _has_alpha(image: Image.Image) -> bool:
    return "transparency" in image.info or image.mode in ALPHA


def _rgb(image: Image.Image) -> RGB:
    if image.mode in SIXTEEN_BIT:
        grey_HW = np.clip(np.asarray(image, np.int32), 0, 0xFFFF) >> 8
        return np.repeat(grey_HW.astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("floating point: no agreed range")
    if not _has_alpha(image):
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    rgba_HW4 = np.asarray(image.convert("RGBA"))
    alpha_HW1 = rgba_HW4[:, :, 3:].astype(np.uint16)
    white_HW3 = rgba_HW4[:, :, :3] * alpha_HW1  # with what follows, at most 255 * 255 + 127
    white_HW3 += 255 * (255 - alpha_HW1) + 127
    white_HW3 //= 255
    return white_HW3.astype(np.uint8)


def _upright(rgb: RGB, turn: int) -> RGB:
    """Returns the picture as EXIF wants it shown: transposed from 5 on, then mirrored."""
    if turn >= 5:
        rgb = rgb.transpose(1, 0, 2)
    if turn in (2, 3, 6, 7):
        rgb = rgb[:, ::-1]
    if turn in (3, 4, 7, 8):
        rgb = rgb[::-1]
    return np.ascontiguousarray(rgb)


@contextmanager
def silence() -> Iterator[None]:
    """Drops what C code prints: libtiff and OpenCV's libjpeg write a line for each bad file.

    C's `stderr` is a variable. File descriptor 2, where Python writes, stays as it is.
    """
    global _silent
    with _silencing:
        _silent += 1
        _point()
    try:
        yield
    finally:
        with _silencing:
            _silent -= 1
            _point()


def _point() -> None:
    if libc and _nowhere:
        _stderr.value = _nowhere if _silent else _shown


START = re.compile(
    rb"(?P<jpeg>\xff\xd8\xff)|(?P<png>\x89PNG\r\n\x1a\n)|(?P<gif>GIF8[79]a)|(?P<webp>RIFF.{4}WEBP)"
    rb"|(?P<bmp>BM)|(?P<tiff>II\*\0|MM\0\*)|(?P<avif>.{4}ftypavi[fs])",
    re.DOTALL,
)
LAST_BYTES = {"jpeg": b"\xff\xd9", "png": b"IEND\xaeB`\x82", "gif": b";"}
DECLARED = {"webp": (4, 8), "bmp": (2, 0)}  # offset of the file's size, and bytes not counted in it


def format_of(body: bytes) -> str | None:
    """Returns jpeg, png, gif, webp, bmp, tiff or avif; None for others: HTML, SVG, ICO, HEIC."""
    found = START.match(body)
    return found.lastgroup if found else None


def is_whole(name: str, body: bytes) -> bool:
    """Returns whether the bytes end as a file of that format does."""
    if name not in DECLARED:
        return body.rstrip(b"\0\r\n").endswith(LAST_BYTES.get(name, b""))
    offset, beyond = DECLARED[name]
    size = int.from_bytes(body[offset : offset + 4], "little")
    return len(body) >= max(offset + 4, size + beyond)
