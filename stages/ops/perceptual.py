"""Perceptual hashes of decoded pictures: imagehash's, bit for bit, from Pillow's resampling.

Pillow's grey and its Lanczos filter are integer arithmetic. They are done here with the same
integers in compiled loops that a processor runs 16 values at a time (tests/benchmarks/phash.py).
"""

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.fft import dct

from stages.ops.images import RGB

# Shapes: N pictures; H height and W width of one; R, C rows and columns of its thumbnail; T taps.

FIXED_BITS = 22  # of a weight behind the point, in Pillow
LOBES = 3  # of the Lanczos filter
SIDE = 32  # of the thumbnail that pHash transforms
LOW = 8  # its lowest frequencies, of each axis


def phash(pictures: Sequence[RGB]) -> NDArray[np.uint64]:
    """(N,) the lowest 8 x 8 frequencies of a 32 x 32 thumbnail: 1 where above their median.

    Source: imagehash.phash of each picture (version 4.3), highest bit first.
    Error: none against imagehash. Its rule leaves bits to rounding where frequencies tie with the
    median: in flat pictures, and in those with a mirror axis, half of whose frequencies are 0.
    """
    thumbnail_NRC = thumbnails(pictures, SIDE, SIDE).astype(np.float64)
    # scipy's own sums, in its order: a product of matrices rounds otherwise where values tie.
    low_NRC = dct(dct(thumbnail_NRC, axis=1)[:, :LOW], axis=2)[:, :, :LOW]
    low_NB = low_NRC.reshape(len(pictures), LOW * LOW)
    return _as_code(low_NB > np.median(low_NB, axis=1, keepdims=True))


def dhash(pictures: Sequence[RGB]) -> NDArray[np.uint64]:
    """(N,) whether each pixel of an 8 x 8 thumbnail is darker than the one to its right.

    Source: imagehash.dhash of each picture, highest bit first.
    """
    thumbnail_NRC = thumbnails(pictures, LOW, LOW + 1)
    is_darker_NRC = thumbnail_NRC[:, :, :-1] < thumbnail_NRC[:, :, 1:]
    return _as_code(is_darker_NRC.reshape(len(pictures), LOW * LOW))


def thumbnails(pictures: Sequence[RGB], rows: int, columns: int) -> NDArray[np.uint8]:
    """(N, R, C) each picture in grey, resized: Pillow's convert("L") and resize(LANCZOS).

    Error: none against Pillow 13, which resizes tall pictures downwards first. Before 13 all were
    resized sideways first; the rounding between the passes then moves some pixels by a few levels.
    """
    made_NRC = np.empty((len(pictures), rows, columns), np.uint8)
    # Memory that is asked for anew is cleared by the system, which takes as long as the arithmetic.
    held = np.empty((2, max((rgb.size // 3 for rgb in pictures), default=0)), np.uint8)
    for number, rgb in enumerate(pictures):  # pictures differ in size
        height, width = rgb.shape[:2]
        grey_HW = held[0, : height * width].reshape(height, width)
        _grey(rgb.reshape(height, 3 * width), grey_HW)
        if rows < height and 2 * (width - columns) < height - rows:  # a tall picture: see Error
            low_RW = _shrink(grey_HW, *taps(height, rows))
            made_CR = _shrink(cv2.transpose(low_RW), *taps(width, columns))
            made_NRC[number] = cv2.transpose(made_CR)
        else:
            grey_WH = held[1, : height * width].reshape(width, height)
            cv2.transpose(grey_HW, grey_WH)
            narrow_CH = _shrink(grey_WH, *taps(width, columns))
            made_NRC[number] = _shrink(cv2.transpose(narrow_CH), *taps(height, rows))
    return made_NRC


@lru_cache(maxsize=4096)
def taps(before: int, after: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Where each output pixel begins to read, and its (R, T) weights in fixed point."""
    if before == after:  # Pillow leaves out a pass that changes no size
        return np.arange(after, dtype=np.int32), np.full((after, 1), 1 << FIXED_BITS, np.int32)
    scale = before / after
    stretch = max(scale, 1.0)
    support = LOBES * stretch
    centre_R = (np.arange(after) + 0.5) * scale
    start_R = np.maximum((centre_R - support + 0.5).astype(np.int64), 0)
    stop_R = np.minimum((centre_R + support + 0.5).astype(np.int64), before)
    tap_1T = np.arange((stop_R - start_R).max())[None]
    x_RT = (tap_1T + start_R[:, None] - centre_R[:, None] + 0.5) * (1 / stretch)
    weight_RT = np.where(np.abs(x_RT) < LOBES, np.sinc(x_RT) * np.sinc(x_RT / LOBES), 0)
    weight_RT[start_R[:, None] + tap_1T >= stop_R[:, None]] = 0
    weight_RT /= weight_RT.sum(axis=1, keepdims=True)
    fixed_RT = np.trunc(weight_RT * (1 << FIXED_BITS) + np.copysign(0.5, weight_RT))
    return start_R.astype(np.int32), fixed_RT.astype(np.int32)


@njit(cache=True, nogil=True)
def _grey(rgb_H3W, grey_HW):
    """Fills in Rec. 601 luma, rounded from 16 bits behind the point, as Pillow has it."""
    height, width = grey_HW.shape
    plane_3W = np.empty((3, width), np.uint8)
    for y in range(height):
        line, red, green, blue = rgb_H3W[y], plane_3W[0], plane_3W[1], plane_3W[2]
        for x in range(width):  # apart first: the sum then runs on neighbours
            red[x], green[x], blue[x] = line[3 * x], line[3 * x + 1], line[3 * x + 2]
        grey = grey_HW[y]
        for x in range(width):
            luma = np.int32(red[x]) * 19595 + np.int32(green[x]) * 38470 + np.int32(blue[x]) * 7471
            grey[x] = (luma + 32768) >> 16


@njit(cache=True, nogil=True)
def _shrink(picture_LS, start_R, weight_RT):
    """(R, S) weighted sums over the first axis, rounded and cut to 8 bits, each pass as Pillow."""
    length, side = picture_LS.shape
    made_RS = np.empty((len(start_R), side), np.uint8)
    sum_S = np.empty(side, np.int32)
    for row in range(len(start_R)):
        sum_S[:] = 1 << (FIXED_BITS - 1)
        for tap in range(min(weight_RT.shape[1], length - start_R[row])):
            line_S, weight = picture_LS[start_R[row] + tap], weight_RT[row, tap]
            for s in range(side):
                sum_S[s] += np.int32(line_S[s]) * weight
        made_S = made_RS[row]
        for s in range(side):
            made_S[s] = min(max(sum_S[s] >> FIXED_BITS, 0), 255)
    return made_RS


def _as_code(bit_NB: NDArray[np.bool_]) -> NDArray[np.uint64]:
    return np.packbits(bit_NB, axis=1).view(">u8")[:, 0].astype(np.uint64)
