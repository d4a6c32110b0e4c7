"""Codes by which a picture is found behind a border of one colour, a small turn, another size."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from clipmill.stages.ops.images.mask import NEAR, cut_out
from clipmill.stages.ops.images.opened import RGB
from clipmill.stages.ops.images.perceptual import phash

# Shapes: N pictures, V views of each, C colour channels, H x W pixels, K and T pictures.

SIDE = 48  # of a window
REACH = 2.2  # half a window's side, in standard deviations of the ink about its centre
MOST_INK = 128  # levels below white, so that outlines weigh no more than areas
TURNS = tuple(range(-12, 13, 4))  # degrees
VIEWS, CHANNELS = len(TURNS), 3


def codes(pictures: Sequence[RGB], turns: Sequence[float] = TURNS) -> NDArray[np.uint64]:
    """Returns (N, V, C) the pHash of each channel of each picture, cut out and turned so.

    Error: of drawings turned by up to 12 degrees, on a border and scaled, .93 are at most 12 bits
    `apart` from the codes of their own, of other drawings .001 (docs/measured/dedup.md).
    """
    windows = [window for rgb in pictures for window in _windows(cut_out(rgb), turns)]
    grey = [
        np.repeat(w[:, :, [channel]], 3, axis=2) for w in windows for channel in range(CHANNELS)
    ]
    return phash(grey).reshape(len(pictures), len(turns), CHANNELS)


def apart(code_KC: NDArray[np.uint64], code_TVC: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Returns (K, T) the fewest bits of 192 by which a code differs from those of a picture."""
    code_VCT = np.ascontiguousarray(code_TVC.transpose(1, 2, 0))
    least_KT = np.empty((len(code_KC), len(code_TVC)), np.uint8)
    for k, code_C in enumerate(code_KC):
        apart_VT = np.bitwise_count(code_VCT ^ code_C[:, None]).sum(1, dtype=np.uint8)
        apart_VT.min(0, out=least_KT[k])
    return least_KT


def _windows(rgb: RGB, turns: Sequence[float]) -> list[RGB]:
    """Returns squares about the centre of what is not white, as wide as that is spread."""
    ink_HW = 255 - rgb.min(2)
    ink_HW[ink_HW < NEAR] = 0
    moments = cv2.moments(np.minimum(ink_HW, MOST_INK))
    if not moments["m00"]:
        return [np.full((SIDE, SIDE, CHANNELS), 255, np.uint8)] * len(turns)
    centre = moments["m10"] / moments["m00"], moments["m01"] / moments["m00"]
    spread = np.sqrt((moments["mu20"] + moments["mu02"]) / moments["m00"])
    scale, drawn = SIDE / 2 / (REACH * max(spread, 1)), rgb
    if scale < 1:  # else pixels between those that a turn reads are lost
        size = [max(1, round(scale * side)) for side in rgb.shape[1::-1]]
        drawn = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    windows = []
    for degrees in turns:
        turn_23: NDArray[np.float64] = np.array(cv2.getRotationMatrix2D(centre, degrees, scale))
        turn_23[:, 2] += SIDE / 2 - centre[0], SIDE / 2 - centre[1]  # the centre to the window's
        # It is of pixels of `rgb`, and is given those of `drawn`, which are larger.
        turn_23[:, :2] *= rgb.shape[1] / drawn.shape[1], rgb.shape[0] / drawn.shape[0]
        turned = cv2.warpAffine(drawn, turn_23, (SIDE, SIDE), borderValue=(255, 255, 255))
        windows.append(turned.astype(np.uint8, copy=False))
    return windows
