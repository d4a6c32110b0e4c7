"""Decodes images: upright, in 8-bit RGB, on white."""

import ctypes
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
from PIL import Image

from clipmill.stages.ops.images.opened import MAX_PIXELS, RGB, ImageError, failure, weighed

# Shapes: H height, W width, 3 or 4 channels; N rows of a batch.

LARGE_PIXELS = 1 << 24  # if memory runs out, only a picture with more is given up

# Settings of glibc, where it is: freed memory is kept, messages are silenced.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)

libc = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
if libc:
    libc.fopen.restype = ctypes.c_void_p
    _stderr = ctypes.c_void_p.in_dll(libc, "stderr")
    _shown, _nowhere = _stderr.value, libc.fopen(b"/dev/null", b"w")
    # Freed buffers of up to 128 MB are used again, of 32 MB where glibc allows no more. By default
    # the system takes each back and gives it out page by page: a third of decoding time.
    if not libc.mallopt(M_MMAP_THRESHOLD, 128 << 20):
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
    libc.mallopt(M_TRIM_THRESHOLD, 256 << 20)
_silencing = threading.Lock()
_silent = 0  # callers that are silenced
cv2.setNumThreads(1)  # workers run side by side; a resize must not take all their cores

SPARE = 1.5  # a JPEG decoded smaller keeps so many times the size that it is wanted at


def decode(body: bytes, max_pixels: int = MAX_PIXELS, shrink: int = 1) -> RGB:
    """Returns (H, W, 3) the first frame, upright, in 8-bit RGB, transparency on white.

    A JPEG is decoded smaller by `shrink`, 2, 4 or 8, sides rounded, from the low frequencies of its
    blocks; CMYK and other formats keep their size.

    Error: colour profiles are ignored; CMYK is read as Adobe writes it, inverted, as Pillow and
    OpenCV do; 16 bits are cut to the upper 8; a corrupt file may still decode, one in seven of
    those in the demo pool does.
    """
    opened = weighed(body, max_pixels)
    image, parts = opened.image, opened.parts
    try:
        with silence():
            is_plain = parts.format == "jpeg" and parts.is_clean_jpeg and image.mode != "CMYK"
            rgb = _of_jpeg(body, shrink, *image.size) if is_plain else None
            if rgb is None:  # Pillow says what is wrong
                image.load()
                rgb = _rgb(image)
        return _upright(rgb, opened.turn)
    except MemoryError:
        if opened.area < LARGE_PIXELS:  # any picture would fail here: no fault of this one
            raise
        raise ImageError("too_many_pixels") from None
    except Exception as error:  # see opened()
        raise ImageError(failure(parts.format, body)) from error


def _of_jpeg(body: bytes, shrink: int, width: int, height: int) -> RGB | None:
    """Returns OpenCV's pixels, the same as Pillow's, in 3/4 of the time; None for a bad file."""
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    if shrink > 1:  # not the COLOR flag of that size, which asks for BGR
        flags |= getattr(cv2, f"IMREAD_REDUCED_GRAYSCALE_{shrink}")
    try:
        rgb = cv2.imdecode(np.frombuffer(body, np.uint8), flags)
    except cv2.error:
        return None
    if rgb is not None:  # sides come rounded up: less than half of a last row may be picture
        rgb = rgb[: max(1, round(height / shrink)), : max(1, round(width / shrink))]
    return rgb  # type: ignore[return-value]  # 8 bits


def _rgb(image: Image.Image) -> RGB:
    if image.mode.startswith("I"):  # 16 bits
        grey_HW = np.clip(np.asarray(image, np.int32), 0, 0xFFFF) >> 8
        return np.repeat(grey_HW.astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("floating point: no agreed range")
    if not image.has_transparency_data:
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    rgba_HW4 = np.asarray(image.convert("RGBA"))
    alpha_HW1 = rgba_HW4[:, :, 3:].astype(np.uint16)
    white_HW3 = rgba_HW4[:, :, :3] * alpha_HW1  # with what follows, at most 255 * 255 + 127
    white_HW3 += 255 * (255 - alpha_HW1) + 127
    return (white_HW3 // 255).astype(np.uint8)


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
    _silence(1)
    try:
        yield
    finally:
        _silence(-1)


def _silence(callers: int) -> None:
    global _silent
    with _silencing:
        _silent += callers
        if libc and _nowhere:
            _stderr.value = _nowhere if _silent else _shown
