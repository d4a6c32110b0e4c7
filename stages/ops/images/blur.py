"""Blurs boxes of a picture as img2dataset does, to the pixel."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from clipmill.stages.ops.images.encoded import EncodeFormat

# Shapes: H x W pixels, K boxes.

RGB = NDArray[np.uint8]
Boxes = Sequence[Sequence[float]]  # x0, y0, x1, y1 of each, in fractions of the sides
NO_BOXES, BAD_BOX = "no_boxes", "bad_box"  # reasons
GROWN = 0.1  # of the longer side: what a box grows by, and half the kernel
FAR = -1, 2  # fractions at which a box is cut: a box in pixels would take a kernel of millions


def fault(boxes: Boxes | None) -> str | None:
    """Returns the reason why boxes cannot be blurred: unknown ones, or one that is no box.

    A box past the edge is cut; one that is turned round, outside or not finite is no box.
    """
    if boxes is None:
        return NO_BOXES
    return None if all(map(is_box, boxes)) else BAD_BOX


def is_box(box: Sequence[float | None] | None) -> bool:
    numbers = [n for n in box or () if n is not None and math.isfinite(n)]
    if len(numbers) != 4 or len(box or ()) != 4:
        return False
    x0, y0, x1, y1 = numbers
    return x0 <= x1 and y0 <= y1 and max(x0, y0) < 1 and min(x1, y1) > 0


def soft(
    body: bytes, boxes: Boxes, encode_format: "EncodeFormat" = "webp", quality: int = 100
) -> bytes | None:
    """Returns the encoded picture with its boxes blurred; None if undecodable.

    Without a box the bytes stay; one that the format cannot hold is a PNG. Source: DataComp's
    resharder.py, for the defaults.
    """
    from clipmill.stages.ops.images.decode import decode
    from clipmill.stages.ops.images.encoded import encode
    from clipmill.stages.ops.images.opened import ImageError

    if not boxes:
        return body
    try:
        rgb = blurred(decode(body), boxes)
    except ImageError:
        return None
    try:
        return encode(rgb, encode_format, quality)
    except ImageError:
        return encode(rgb, "png", 9)


def blurred(rgb: RGB, boxes: Boxes) -> RGB:
    """Returns the picture with its boxes blurred; the same object without a box.

    Source: img2dataset 1.47, BoundingBoxBlurrer: one kernel for all boxes, by the largest.
    """
    if not boxes:
        return rgb
    import cv2

    height, width = rgb.shape[:2]
    mask_HW, largest = np.zeros((height, width), np.float32), 0
    for box in boxes:
        near = np.clip(box, *FAR).tolist()
        pixels = [int(n * size) for n, size in zip(near, (width, height) * 2, strict=True)]
        longer = max(pixels[2] - pixels[0], pixels[3] - pixels[1])
        largest = max(largest, longer)
        grown = [
            int(n + sign * GROWN * longer) for n, sign in zip(pixels, (-1, -1, 1, 1), strict=True)
        ]
        x0, y0, x1, y1 = np.clip(grown, 0, (width - 1, height - 1) * 2)
        mask_HW[y0:y1, x0:x1] = 1
    size = max(3, 2 * math.ceil(GROWN * largest) + 1)
    unit_HW3 = rgb.astype(np.float32) / 255.0
    soft_HW3 = cv2.GaussianBlur(unit_HW3, (size, size), 0)  # deviation by the kernel's size
    share_HW1 = cv2.GaussianBlur(mask_HW, (size, size), 0)[..., None]
    both_HW3 = unit_HW3 * (1 - share_HW1) + soft_HW3 * share_HW1
    return (both_HW3 * 255.0).astype(np.uint8)
