"""Reads headers of encoded images, without decoding a pixel, and encodes pictures."""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from clipmill.stages.ops.images.opened import DIRECTORY, GIF_IMAGE, RGB, ImageError, Parts, opened

EncodeFormat = Literal["jpg", "png", "webp"]
ENCODED: dict[EncodeFormat, tuple[str, int]] = {
    "jpg": ("jpeg", cv2.IMWRITE_JPEG_QUALITY),
    "png": ("png", cv2.IMWRITE_PNG_COMPRESSION),
    "webp": ("webp", cv2.IMWRITE_WEBP_QUALITY),
}


@dataclass(frozen=True, kw_only=True)
class Header:
    """The header of an encoded image; sides as shown, after its EXIF orientation."""

    format: str
    width: int
    height: int
    frames: int
    is_plain: bool  # one upright opaque frame in grey or RGB: any reader sees these pixels


def probe(body: bytes) -> Header:
    """Returns the header, without decoding a pixel."""
    file = opened(body)
    name, image = file.parts.format, file.image
    width, height = image.size if file.turn < 5 else image.size[::-1]
    # The decoders of these two count frames, in C.
    frames = getattr(image, "n_frames", 1) if name in ("webp", "avif") else frames_of(file.parts)
    plain = file.turn == frames == 1 and image.mode in ("L", "RGB")
    plain = plain and not image.has_transparency_data
    return Header(format=name, width=width, height=height, frames=frames, is_plain=plain)


def frames_of(parts: Parts) -> int:
    """Returns the number of pictures in the file, 1 up; counted, not read from the header."""
    if parts.format == "png":
        before = parts.kinds[: parts.kinds.index(b"IDAT")] if b"IDAT" in parts.kinds else []
        if b"acTL" not in before:
            return 1
        # With none before IDAT, IDAT is a picture beside the animation.
        return parts.kinds.count(b"fcTL") + (b"fcTL" not in before)
    return max(1, parts.kinds.count({"gif": GIF_IMAGE, "tiff": DIRECTORY}.get(parts.format, b"")))


def encode(rgb: RGB, encode_format: EncodeFormat, quality: int) -> bytes:
    """Returns the picture in that format; quality 0 to 100, for PNG the compression, up to 9."""
    _, option = ENCODED[encode_format]
    quality = min(quality, 9) if encode_format == "png" else quality  # OpenCV would, and says so
    bgr = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2BGR)
    try:
        done, data = cv2.imencode(f".{encode_format}", bgr, [option, quality])
    except cv2.error:
        done = False
    if not done:  # a side past what the format can hold: 65,535 pixels in JPEG, 16,383 in WebP
        raise ImageError("too_many_pixels")
    return data.tobytes()
