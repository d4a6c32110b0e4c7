"""Computes perceptual hashes of pictures: imagehash's, bit for bit, by Pillow's resampling.

Pillow's grey and its Lanczos filter are integer arithmetic. They are done here with the same
integers in compiled loops that a processor runs 16 values at a time: 6 to 8 times as fast.
"""

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct

from clipmill.stages.ops.compiled import compiled
from clipmill.stages.ops.images.opened import RGB

# Shapes: N pictures; H height and W width of one; R, C rows and columns of its thumbnail;
# L frequencies of an axis, B bits; T taps.

FIXED_BITS = 22  # of a weight behind the point, in Pillow
LOBES = 3  # of the Lanczos filter
SIDE = 32  # of the thumbnail that pHash transforms
LOW = 8  # its lowest frequencies, of each axis
WAVE_LR = dct(np.eye(SIDE), axis=0)[:LOW]
TIE = 1e-6  # sums of 1024 products, each less than 1021, are off by less than 1e-8 in any order


def phash(pictures: Sequence[RGB]) -> NDArray[np.uint64]:
    """Returns (N,) the lowest 8 x 8 frequencies of a 32 x 32 thumbnail: 1 if above their median.

    Source: imagehash.phash of each picture (version 4.3), highest bit first.
    Error: none against imagehash. Its rule leaves bits to rounding where frequencies tie with the
    median: in flat pictures, and in those with a mirror axis, half of whose frequencies are 0.
    """
    thumbnail_NRC = thumbnails(pictures, SIDE, SIDE).astype(np.float64)
    above_NB = _above_median(WAVE_LR @ thumbnail_NRC @ WAVE_LR.T)
    # Ties are decided by scipy's own sums, in its order: it takes 5 times as long.
    tied = np.flatnonzero((np.abs(above_NB) < TIE).any(axis=1))
    if len(tied):
        down_NLC = dct(thumbnail_NRC[tied], axis=1)[:, :LOW]
        above_NB[tied] = _above_median(dct(down_NLC, axis=2)[:, :, :LOW])
    return _as_code(above_NB > 0)


def dhash(pictures: Sequence[RGB]) -> NDArray[np.uint64]:
    """Returns (N,) whether each pixel of an 8 x 8 thumbnail is darker than its right neighbour.

    Source: imagehash.dhash of each picture, highest bit first.
    """
    thumbnail_NRC = thumbnails(pictures, LOW, LOW + 1)
    is_darker_NRC = thumbnail_NRC[:, :, :-1] < thumbnail_NRC[:, :, 1:]
    return _as_code(is_darker_NRC.reshape(len(pictures), LOW * LOW))


def thumbnails(pictures: Sequence[RGB], rows: int, columns: int) -> NDArray[np.uint8]:
    """Returns (N, R, C) the pictures in grey, resized: Pillow's convert("L"), resize(LANCZOS).

    Error: none against Pillow 13, which resizes tall pictures downwards first. Before 13 all were
    resized sideways first; the rounding between the passes then moves some pixels by a few levels.
    """
    made_NRC = np.empty((len(pictures), rows, columns), np.uint8)
    # New memory is cleared by the system, which takes as long as the arithmetic.
    scratch_2P = np.empty((2, max((rgb.size // 3 for rgb in pictures), default=0)), np.uint8)
    for number, rgb in enumerate(pictures):  # pictures differ in size
        height, width = rgb.shape[:2]
        grey_HW = scratch_2P[0, : height * width].reshape(height, width)
        _grey(rgb.reshape(height, 3 * width), grey_HW)
        across, down = taps(width, columns), taps(height, rows)
        if rows < height and 2 * (width - columns) < height - rows:  # a tall picture: see Error
            made_NRC[number] = _shrink_both(grey_HW, *down, *across).T
        else:
            grey_WH = scratch_2P[1, : height * width].reshape(width, height)
            cv2.transpose(grey_HW, grey_WH)
            made_NRC[number] = _shrink_both(grey_WH, *across, *down)
    return made_NRC


@lru_cache(maxsize=4096)
def taps(before: int, after: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Returns where each output pixel begins to read, and its (R, T) weights in fixed point."""
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


@compiled()
def _grey(rgb_H3W, grey_HW):
    """Fills in Rec. 601 luma, rounded from 16 bits behind the point, as Pillow has it."""
    height, width = grey_HW.shape
    plane_3W = np.empty((3, width), np.uint8)
    for y in range(height):
        line, red, green, blue = rgb_H3W[y], plane_3W[0], plane_3W[1], plane_3W[2]
        for x in range(width):  # planes first: the sum then runs on neighbours
            red[x], green[x], blue[x] = line[3 * x], line[3 * x + 1], line[3 * x + 2]
        grey = grey_HW[y]
        for x in range(width):
            luma = np.int32(red[x]) * 19595 + np.int32(green[x]) * 38470 + np.int32(blue[x]) * 7471
            grey[x] = (luma + 32768) >> 16


@compiled()
def _shrink_both(picture_LS, start_R, weight_RT, start_C, weight_CT):
    """Returns (C, R): both axes shrunk, the first one first."""
    low_RS = _shrink(picture_LS, start_R, weight_RT)
    low_SR = np.empty(low_RS.shape[::-1], np.uint8)
    for s in range(low_SR.shape[0]):
        for row in range(low_SR.shape[1]):
            low_SR[s, row] = low_RS[row, s]
    return _shrink(low_SR, start_C, weight_CT)


@compiled()
def _shrink(picture_LS, start_R, weight_RT):
    """Returns (R, S) weighted sums over the first axis, rounded and cut to 8 bits, as Pillow."""
    length, side = picture_LS.shape
    made_RS = np.empty((len(start_R), side), np.uint8)
    sum_S = np.empty(side, np.int32)
    for row in range(len(start_R)):
        sum_S[:] = 1 << (FIXED_BITS - 1)
        begin, count = start_R[row], min(weight_RT.shape[1], length - start_R[row])
        if count % 2:
            for s in range(side):
                sum_S[s] += np.int32(picture_LS[begin, s]) * weight_RT[row, 0]
        for tap in range(count % 2, count, 2):  # by twos: sums are read and written half as often
            a_S, b_S = picture_LS[begin + tap], picture_LS[begin + tap + 1]
            a, b = weight_RT[row, tap], weight_RT[row, tap + 1]
            for s in range(side):
                sum_S[s] += np.int32(a_S[s]) * a + np.int32(b_S[s]) * b
        made_S = made_RS[row]
        for s in range(side):
            made_S[s] = min(max(sum_S[s] >> FIXED_BITS, 0), 255)
    return made_RS


def _above_median(low_NLL):
    """Returns (N, B) each value less its picture's median."""
    low_NB = low_NLL.reshape(len(low_NLL), LOW * LOW)
    return low_NB - np.median(low_NB, axis=1, keepdims=True)


def _as_code(bit_NB: NDArray[np.bool_]) -> NDArray[np.uint64]:
    return np.packbits(bit_NB, axis=1).view(">u8")[:, 0].astype(np.uint64)
