"""Filled text: colours of rings, overlaps, pages of text alone, boxes past the edge."""

import numpy as np
import pyarrow as pa

from clipmill.stages.ops.images.mask import filled, pictures
from tests.stages.networks import drawn
from tests.stages.networks import pictures as batch_of

RED, BLUE, BLACK = (200, 10, 10), (10, 10, 200), (0, 0, 0)


def box(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def halves() -> np.ndarray:
    """Red on the left, blue on the right, a black word on each."""
    rgb = np.full((100, 200, 3), RED, np.uint8)
    rgb[:, 100:] = BLUE
    rgb[40:60, 20:80] = rgb[40:60, 120:180] = BLACK
    return rgb


def test_each_box_takes_the_colour_round_it():
    boxes = [box(0.1, 0.4, 0.395, 0.59), box(0.6, 0.4, 0.895, 0.59)]
    plain = np.full((100, 200, 3), RED, np.uint8)
    plain[:, 100:] = BLUE
    np.testing.assert_array_equal(filled(halves(), boxes), plain)
    one = filled(halves(), boxes[:1])
    np.testing.assert_array_equal(one[:, :100], plain[:, :100])
    np.testing.assert_array_equal(one[:, 100:], halves()[:, 100:])


def test_a_ring_leaves_out_other_boxes():
    rgb = np.full((60, 60, 3), RED, np.uint8)
    rgb[20:40, 10:30], rgb[20:40, 30:50] = BLACK, BLUE
    boxes = [box(10 / 60, 20 / 60, 29 / 60, 39 / 60), box(30 / 60, 20 / 60, 49 / 60, 39 / 60)]
    assert (filled(rgb, boxes) == RED).all()


def test_a_page_of_text_alone_has_one_colour():
    for boxes in (
        [box(0, 0, 1, 1)],
        [box(-0.5, -0.5, 2, 2)],
        [box(0, 0, 1, 0.6), box(0, 0.5, 1, 1)],
    ):
        out = filled(drawn((40, 50))[0], boxes)
        assert (out == out[0, 0]).all()


def test_a_turned_box_is_filled_along_its_sides():
    rgb = np.full((100, 100, 3), RED, np.uint8)
    diamond = [0.5, 0.2, 0.8, 0.5, 0.5, 0.8, 0.2, 0.5]
    rgb[45:55, 45:55] = BLACK
    rgb[2, 2] = BLUE
    out = filled(rgb, [diamond])
    assert (out[45:55, 45:55] == RED).all()
    assert (out[2, 2] == BLUE).all()


def test_thin_pictures_and_boxes_outside_do_no_harm():
    for rgb in drawn((1, 1), (1, 500), (500, 1)):
        assert filled(rgb, [box(0.1, 0.1, 0.9, 0.9)]).shape == rgb.shape
        for nowhere in (box(1.5, 1.5, 2, 2), box(0, 0, np.nan, 1), box(-1e30, -9, -1, -1), None):
            np.testing.assert_array_equal(filled(rgb, [nowhere]), rgb)


def test_pictures_without_a_box_are_the_same_pixels():
    rgb = [*drawn((20, 30), (30, 20), (9, 9)), None]
    boxes = [[], None, [box(0, 0, 0.5, 0.5)], None]
    batch = batch_of(rgb)
    masked = batch.append_column("text_boxes", pa.array(boxes, pa.list_(pa.list_(pa.float32(), 8))))
    plain, out = pictures(batch), pictures(masked)
    for row in (0, 1):
        np.testing.assert_array_equal(out[row], plain[row])
    assert (out[2] != plain[2]).any()
    assert out[3] is None
