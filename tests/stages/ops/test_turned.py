"""Pictures cut out of borders; codes that a border, a small turn and another size leave alike."""

import cv2
import numpy as np
import pytest

from clipmill.stages.ops.images.mask import cut_out
from clipmill.stages.ops.images.turned import apart, codes


def test_a_border_of_one_colour_and_its_width_are_no_part_of_a_picture():
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 160, (20, 30, 3), np.uint8)
    inner = drawn[1:-1, 1:-1]  # edges are mixed with a border, but not with white's
    for (top, bottom, left, right), colour, cut in (
        ((5, 2, 9, 1), 255, drawn),
        ((1, 1, 1, 1), 200, inner),
    ):
        sides = ((top, bottom), (left, right), (0, 0))
        bordered = np.pad(drawn, sides, constant_values=colour)
        np.testing.assert_array_equal(cut_out(bordered), cut)
    assert cut_out(drawn) is drawn
    plain = np.full((9, 9, 3), 7, np.uint8)
    assert cut_out(plain) is plain


def test_what_stands_round_a_shape_is_white_and_a_hole_in_it_stays():
    ring = np.full((40, 40, 3), (10, 200, 10), np.uint8)
    cv2.circle(ring, (20, 20), 12, (0, 0, 0), 4)
    cut = cut_out(ring)
    assert cut[0, 0].tolist() == [255, 255, 255]
    assert cut[len(cut) // 2, len(cut) // 2].tolist() == [10, 200, 10]


def test_a_line_that_scaling_leaves_on_the_edge_of_a_border_is_none_of_the_picture():
    page = np.full((60, 60, 3), (200, 40, 40), np.uint8)
    page[10:50, 10:50] = 180
    page[13:47, 13:47] = 255
    page[20:40, 25:35] = 0
    assert cut_out(page).shape[:2] == (20, 10)


def page_of(seed: int) -> np.ndarray:
    """Four rectangles on white."""
    rng, page = np.random.default_rng(seed), np.full((64, 64, 3), 255, np.uint8)
    for corner in rng.integers(12, 40, (4, 2)):
        cv2.rectangle(page, corner, corner + rng.integers(6, 16, 2), rng.uniform(0, 200, 3), -1)
    return page


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (200, 40, 40)])
@pytest.mark.parametrize(("degrees", "scale"), [(8, 0.7), (-8, 2.5), (11, 1.0), (0, 0.6)])
def test_codes_are_near_behind_a_border_a_turn_and_another_size(colour, degrees, scale):
    framed = cv2.copyMakeBorder(page_of(0), *[14] * 4, cv2.BORDER_CONSTANT, value=colour)
    turn = cv2.getRotationMatrix2D((46, 46), degrees, 1)
    framed = cv2.warpAffine(framed, turn, (92, 92), borderValue=colour)
    framed = cv2.resize(framed, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    copy_KC = codes([framed], [0])[:, 0]
    same, *others = apart(copy_KC, codes([page_of(seed) for seed in range(9)]))[0].tolist()
    assert same <= 12 < min(others)


def test_apart_is_of_the_nearest_turn_whatever_the_others():
    code_TVC = np.zeros((2, 3, 3), np.uint64)
    code_TVC[0, :2], code_TVC[1, 1:] = 7, 2**63 + 1
    assert apart(np.array([[0, 0, 1]], np.uint64), code_TVC).tolist() == [[1, 1]]
    assert apart(np.array([[7, 7, 1]], np.uint64), code_TVC).tolist() == [[2, 7]]


def test_pictures_without_ink_and_none_have_codes():
    white = np.full((9, 5, 3), 255, np.uint8)
    assert codes([white]).shape == (1, 7, 3)
    assert codes([]).shape == (0, 7, 3)
