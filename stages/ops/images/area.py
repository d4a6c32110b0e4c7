"""Shrinks pictures by the means of areas: OpenCV's INTER_AREA bit for bit, in half its time.

OpenCV adds each pixel to a sum in memory; here sums stay in registers. It takes as long as decoding
a large JPEG.
"""

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from clipmill.stages.ops.compiled import compiled

# Shapes: H x W the picture's pixels, R x C those of the smaller one, T taps of all rows or columns.
RGB = NDArray[np.uint8]


def shrink(rgb_HW3: RGB, width: int, height: int) -> RGB:
    """Returns (height, width, 3), each pixel the mean of those it covers, edges by their part.

    Error: none against OpenCV 4.14, whose own code does whole multiples, and what is no shrinking.
    """
    H, W = rgb_HW3.shape[:2]
    if height > H or width > W or not (H % height or W % width):
        small = cv2.resize(rgb_HW3, (width, height), interpolation=cv2.INTER_AREA)
        return small  # type: ignore[return-value]  # 8 bits stay 8 bits
    small_RC3 = np.empty((height, width, 3), np.uint8)
    flat_H3W = np.ascontiguousarray(rgb_HW3).reshape(H, 3 * W)
    _shrink(flat_H3W, taps(W, width), taps(H, height), small_RC3.reshape(height, 3 * width))
    return small_RC3


def in_white_square(rgb: RGB, size: int) -> RGB:
    height, width = rgb.shape[:2]
    top, left = (size - height) // 2, (size - width) // 2
    edges = top, size - top - height, left, size - left - width
    white = cv2.copyMakeBorder(rgb, *edges, cv2.BORDER_CONSTANT, value=(255,) * 3)
    return white  # type: ignore[return-value]  # 8 bits stay 8 bits


@lru_cache(maxsize=256)
def taps(before: int, after: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray]:
    """Returns (after + 1,) where each output's taps begin, and (T,) each tap's place and weight."""
    scale = 1 / (after / before)
    begin = np.arange(after) * scale
    end = begin + scale
    covered = np.minimum(scale, before - begin)
    last = np.minimum(np.floor(end), before - 1)
    first = np.minimum(np.ceil(begin), last)  # whole pixels, and at each end a part of one
    head, tail = first - begin, end - last
    has_head, has_tail = head > 1e-3, tail > 1e-3
    count = (last - first + has_head + has_tail).astype(np.int64)
    start = np.concatenate([[0], np.cumsum(count)])
    weight_T = np.repeat(1 / covered, count)
    weight_T[start[:-1][has_head]] = (head / covered)[has_head]
    parts = np.minimum(np.minimum(tail, 1), covered) / covered
    weight_T[start[1:][has_tail] - 1] = parts[has_tail]
    place_T = np.arange(start[-1]) - np.repeat(start[:-1] - (first - has_head).astype(int), count)
    return start.astype(np.uint32), place_T.astype(np.uint32), weight_T.astype(np.float32)


@compiled()
def _shrink(flat_H3W, across, down, made_R3C):
    """Fills in the smaller picture; sums are in float32, in OpenCV's order."""
    start_C, place_T, weight_T = across
    width, length = len(start_C) - 1, flat_H3W.shape[1] // 3
    plane_3W = np.empty((3, length), np.float32)
    row_3C, sum_3C = np.empty(3 * width, np.float32), np.empty(3 * width, np.float32)
    shrunk = -1  # the line that row_3C has: neighbours share one
    for r in range(len(made_R3C)):
        begin, stop = down[0][r], down[0][r + 1]
        for tap in range(begin, stop):
            y, share = down[1][tap], down[2][tap]
            if y != shrunk:
                shrunk = y
                line, red, green, blue = flat_H3W[y], plane_3W[0], plane_3W[1], plane_3W[2]
                for x in range(length):  # planes first: neighbours are converted together
                    red[x], green[x], blue[x] = line[3 * x], line[3 * x + 1], line[3 * x + 2]
                for c in range(width):
                    r_sum = g_sum = b_sum = np.float32(0)
                    for t in range(start_C[c], start_C[c + 1]):
                        x, weight = place_T[t], weight_T[t]
                        r_sum += red[x] * weight
                        g_sum += green[x] * weight
                        b_sum += blue[x] * weight
                    row_3C[3 * c], row_3C[3 * c + 1], row_3C[3 * c + 2] = r_sum, g_sum, b_sum
            if tap == begin:
                sum_3C[:] = 0
            for i in range(3 * width):
                sum_3C[i] += row_3C[i] * share
        out = made_R3C[r]
        for i in range(3 * width):
            out[i] = min(np.rint(sum_3C[i]), np.float32(255))
