"""Masks what a model shall not see in pictures: text, by the colour round it, and borders."""

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import TEXT_BOXES
from clipmill.stages.ops.images.pixels import PIXELS, RGB, rows_of

# Shapes: H x W pixels, K boxes.

RING = 0.2  # of a box's shorter side: width of the ring whose mean fills the box
LEAST_RING = 2  # pixels
NEAR = 24  # levels of 255 by which pixels of a border may differ from its corner's
EDGE = 0.98  # share of the outermost pixels that are near, or the picture has no such border


def pictures(batch: pa.Table) -> list[RGB | None]:
    """Returns the pictures of a batch; where it has text boxes, with their text filled."""
    rows = rows_of(batch[PIXELS.name])
    if TEXT_BOXES.name not in batch.column_names:
        return rows
    pairs = zip(rows, batch[TEXT_BOXES.name].to_pylist(), strict=True)
    return [filled(rgb, boxes) if boxes and rgb is not None else rgb for rgb, boxes in pairs]


def filled(rgb: RGB, boxes: Sequence[Sequence[float] | None]) -> RGB:
    """Returns the picture with each quadrilateral in the mean colour of a ring round it.

    Corners are x and y in turn, in fractions of the sides; a null or not finite box is left out.
    Other boxes are in no ring; without a pixel in the ring, the mean is of all outside the boxes,
    or of the picture.
    """
    import cv2

    height, width = rgb.shape[:2]
    box_K42 = np.array([box for box in boxes if box], np.float64).reshape(-1, 4, 2)
    box_K42 = box_K42[np.isfinite(box_K42).all((1, 2))].clip(-1, 2) * [width, height]
    corners_K42 = np.round(box_K42).astype(np.int32)
    text_HW = np.zeros((height, width), np.uint8)
    for corner_42 in corners_K42:
        cv2.fillPoly(text_HW, [corner_42], 1)
    rest_HW = text_HW == 0
    elsewhere_3 = mean_of(rgb, rest_HW if rest_HW.any() else np.ones_like(rest_HW))
    out = rgb.copy()
    for corner_42 in corners_K42:
        first, second, third, _ = corner_42
        shorter = min(math.dist(first, second), math.dist(second, third))
        ring = max(LEAST_RING, math.ceil(RING * shorter))
        low, high = corner_42.min(0) - ring, corner_42.max(0) + ring + 1
        x, y = (slice(max(0, low[n]), max(0, high[n])) for n in (0, 1))
        inside_HW = np.zeros_like(text_HW[y, x])
        if not inside_HW.size:  # outside the picture
            continue
        cv2.fillPoly(inside_HW, [corner_42 - [x.start, y.start]], 1)
        near_HW = cv2.dilate(inside_HW, np.ones((2 * ring + 1, 2 * ring + 1), np.uint8))
        ring_HW = (near_HW > 0) & rest_HW[y, x]
        colour_3 = mean_of(rgb[y, x], ring_HW) if ring_HW.any() else elsewhere_3
        out[y, x][inside_HW > 0] = colour_3
    return out


def mean_of(rgb: RGB, mask_HW: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Returns (3,) the mean colour of masked pixels, rounded."""
    return np.round(rgb[mask_HW].mean(0)).astype(np.uint8)


def cut_out(rgb: RGB) -> RGB:
    """Returns the picture without its border of one colour, then of white, and with white round it;
    the same picture where it has no such border, or nothing else."""
    import cv2

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
