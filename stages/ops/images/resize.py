"""Resizes and encodes pictures, img2dataset's modes, sizes and pixels; cuts them out of borders."""

from collections.abc import Callable
from typing import Literal

import cv2
import numpy as np

from clipmill.stages.ops.images.area import in_white_square, shrink
from clipmill.stages.ops.images.decode import MAX_PIXELS, RGB, SPARE, ImageError, decode, probe

ResizeMode = Literal["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"]
EncodeFormat = Literal["jpg", "png", "webp"]
Interpolation = Literal["nearest", "linear", "cubic", "area", "lanczos"]

ENCODED: dict[EncodeFormat, tuple[str, int]] = {
    "jpg": ("jpeg", cv2.IMWRITE_JPEG_QUALITY),
    "png": ("png", cv2.IMWRITE_PNG_COMPRESSION),
    "webp": ("webp", cv2.IMWRITE_WEBP_QUALITY),
}
LEAST = 16  # pixels a side that a JPEG decoded smaller keeps: sides are rounded
# cv2.INTER_NEAREST to cv2.INTER_LANCZOS4
INTERPOLATION = {"nearest": 0, "linear": 1, "cubic": 2, "area": 3, "lanczos": 4}
NEAR = 24  # levels of 255 by which pixels of a border may differ from its corner's
EDGE = 0.98  # share of the outermost pixels that are near, or the picture has no such border


def resize(
    rgb: RGB,
    mode: ResizeMode,
    size: int,
    *,
    only_if_bigger: bool = False,
    upscale: Interpolation = "lanczos",
    downscale: Interpolation = "area",
    full: tuple[int, int] | None = None,
    blur: Callable[[RGB], RGB] = lambda rgb: rgb,
) -> RGB:
    """Returns the picture in an img2dataset resize mode; the same object if nothing is to be done.

    Sides: keep_ratio and center_crop take the shorter to `size`, the others the longer; border
    pads to a square with white, center_crop cuts one out. `full` is the height and width of a
    picture that was decoded smaller; `blur` is done to the scaled picture, before it is padded.
    Source: img2dataset 1.47, Resizer; its sizes and pixels.
    """
    if mode == "no":
        return blur(rgb)
    height, width = full or rgb.shape[:2]
    side = _side(mode, height, width)
    if only_if_bigger and side <= size:
        return blur(rgb)
    scale = size / side
    shape = max(1, round(height * scale)), max(1, round(width * scale))
    if shape[0] * shape[1] > MAX_PIXELS:  # one pixel high and very long, to be `size` high
        raise ImageError("too_many_pixels")
    if shape != rgb.shape[:2]:
        method = INTERPOLATION[downscale if side > size else upscale]
        if method == cv2.INTER_AREA:
            rgb = shrink(rgb, *shape[::-1])
        else:
            rgb = cv2.resize(rgb, shape[::-1], interpolation=method).astype(np.uint8, copy=False)
    rgb = blur(rgb)
    if mode == "border":
        rgb = in_white_square(rgb, size)
    elif mode == "center_crop":
        top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
        rgb = rgb[top : top + size, left : left + size]
    return rgb


def reduction(mode: ResizeMode, size: int, height: int, width: int) -> int:
    """Returns the factor, 1, 2, 4 or 8, by which a JPEG to be resized may be decoded smaller.

    Error: PSNR against a full decode with INTER_AREA is at least 44 dB at 2 and 12 megapixels, and
    33 dB on a sharp 640 x 427 photo; of the JPEGs stored of both, 40 and 32 dB.
    """
    if mode == "no":
        return 1
    most = min(_side(mode, height, width) / (SPARE * size), min(height, width) / LEAST)
    return max((by for by in (2, 4, 8) if by <= most), default=1)


def _side(mode: ResizeMode, height: int, width: int) -> int:
    """Returns the side that is scaled to `size`."""
    return (min if mode in ("keep_ratio", "center_crop") else max)(height, width)


def cut_out(rgb: RGB) -> RGB:
    """Returns the picture without its border of one colour, then of white, and with white round it;
    the same picture where it has no such border, or nothing else."""
    corner_3 = rgb[0, 0].astype(np.int16)
    edge_E3 = np.concatenate([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]])
    if (np.abs(edge_E3 - corner_3).max(1) <= NEAR).mean() < EDGE:
        return rgb
    padded = cv2.copyMakeBorder(rgb, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=corner_3.tolist())
    flooded_HW = np.zeros((padded.shape[0] + 2, padded.shape[1] + 2), np.uint8)
    flags = 4 | cv2.FLOODFILL_FIXED_RANGE | cv2.FLOODFILL_MASK_ONLY | (1 << 8)
    cv2.floodFill(padded, flooded_HW, (0, 0), 0, (NEAR,) * 3, (NEAR,) * 3, flags)
    # Edges are mixed with a border's colour, and leave thin lines; but not with white.
    pixels = np.ones((1, 1) if corner_3.min() >= 255 - NEAR else (3, 3), np.uint8)
    white = np.where(cv2.dilate(flooded_HW, pixels)[2:-2, 2:-2, None] > 0, np.uint8(255), rgb)
    is_drawn_HW = (white.min(2) < 255 - NEAR).astype(np.uint8)  # a page in it has a margin, too
    is_drawn_HW = cv2.morphologyEx(is_drawn_HW, cv2.MORPH_OPEN, pixels)
    left, top, width, height = cv2.boundingRect(is_drawn_HW)
    cut = np.ascontiguousarray(white[top : top + height, left : left + width])
    return rgb if min(width, height) < 4 else cut


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


def jpeg_of(body: bytes, side: int) -> bytes:
    """Encodes an image as JPEG of its shape, the longer side at most `side`, or ImageError."""
    header = probe(body)
    full = header.height, header.width
    if header.format == "jpeg" and header.is_plain and max(full) <= side:
        return body  # its own bytes
    rgb = decode(body, shrink=reduction("keep_ratio_largest", side, *full))
    rgb = resize(rgb, "keep_ratio_largest", side, only_if_bigger=True, full=full)
    return encode(rgb, "jpg", 90)  # as in most data sets
