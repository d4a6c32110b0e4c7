"""Blurred boxes: img2dataset's own pixels, and what is no box."""

import math

import numpy as np
import pytest

from clipmill.stages.ops.images.blur import blurred, fault
from tests.stages.networks import drawn

ONE, TWO = [0.1, 0.2, 0.4, 0.5], [0.6, 0.6, 0.9, 0.95]
SHAPES = (300, 400), (64, 50), (1, 9), (9, 1), (1, 1)


@pytest.mark.filterwarnings("ignore")  # of albumentations, about its own names
@pytest.mark.slow("an import that takes seconds")
def test_pixels_are_img2datasets_own(monkeypatch):
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for a newer one
    from img2dataset.blurrer import BoundingBoxBlurrer

    theirs = BoundingBoxBlurrer()
    for rgb in drawn(*SHAPES):
        for boxes in ([ONE], [ONE, TWO], [[0, 0, 1, 1]], [[-0.2, 0.1, 0.3, 1.4]], [[0.5] * 4]):
            np.testing.assert_array_equal(blurred(rgb, boxes), theirs(rgb, boxes))


def test_a_picture_without_a_box_is_the_same_object():
    (rgb,) = drawn((20, 30))
    assert blurred(rgb, []) is rgb
    assert (blurred(rgb, [ONE]) != rgb).any()


def test_a_box_far_past_the_edge_is_cut():
    (rgb,) = drawn((20, 30))
    cut = blurred(rgb, [[0, -1, 2, 1]])
    for far in (300, 1e9, 1e300):
        np.testing.assert_array_equal(blurred(rgb, [[0, -far, far, 1]]), cut)


def test_what_is_no_box_has_a_reason():
    for good in ([], [ONE], [ONE, TWO], [[-0.1, 0, 1.1, 1]], [[0.5] * 4]):
        assert fault(good) is None, good
    assert fault(None) == "no_boxes"
    for bad in (
        *([0.1, 0.2, 0.4], [0.1] * 5, None, [0.1, None, 0.4, 0.5]),
        *([math.nan, 0, 1, 1], [0, 0, math.inf, 1], [0.4, 0.2, 0.1, 0.5], [0.1, 0.5, 0.4, 0.2]),
        *([1.0, 0, 1.5, 1], [0, -2, 1, -1], [0, 0, 0, 1]),
    ):
        assert fault([ONE, bad]) == "bad_box", bad
