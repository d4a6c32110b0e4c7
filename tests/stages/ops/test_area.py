"""Shrinking by areas, bit for bit as OpenCV does it."""

import cv2
import numpy as np
import pytest

from clipmill.stages.ops.images.area import shrink


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def theirs(rgb: np.ndarray, width: int, height: int) -> np.ndarray:
    return cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)


def test_any_size_to_any_smaller_has_opencvs_pixels():
    rng = np.random.default_rng(0)
    for height, width in rng.integers(1, 300, (200, 2)).tolist():
        rgb = noise(height, width)
        size = int(rng.integers(1, width + 1)), int(rng.integers(1, height + 1))
        np.testing.assert_array_equal(shrink(rgb, *size), theirs(rgb, *size))


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((1200, 1600), (256, 192)),
        ((3001, 37), (5, 406)),
        ((1, 70_000), (512, 1)),
        ((40, 40), (20, 10)),  # a whole multiple
        ((40, 40), (41, 39)),  # larger and smaller
        ((7, 9), (9, 7)),
    ],
)
def test_sizes_that_differ_in_kind_have_opencvs_pixels(shape, size):
    np.testing.assert_array_equal(shrink(noise(*shape), *size), theirs(noise(*shape), *size))


def test_a_picture_that_is_turned_or_mirrored_is_read_as_it_stands():
    turned = noise(90, 70).transpose(1, 0, 2)[::-1]
    np.testing.assert_array_equal(
        shrink(turned, 13, 17), theirs(np.ascontiguousarray(turned), 13, 17)
    )


def test_flat_colours_stay_what_they_are():
    for value in (0, 1, 127, 254, 255):
        assert (shrink(np.full((97, 61, 3), value, np.uint8), 23, 31) == value).all()
