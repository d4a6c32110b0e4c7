"""What embeds pictures: any scheme, or the features of a frozen network; weights are pinned."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.stage import Worker
from clipmill.stages.models.image_text import load
from clipmill.stages.models.images import cut_out, embedder, views, width

PICTURES = list(np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), np.uint8))


def test_a_scheme_embeds_as_its_model_does_and_without_weights_pins_nothing(worker):
    embedded_2D = embedder("reference", worker[0])(PICTURES)
    np.testing.assert_array_equal(embedded_2D, load("reference").embed_images(PICTURES))
    assert worker[1] == []


def test_features_are_those_of_the_frozen_network_whose_weights_are_pinned(worker):
    assert embedder("features:float32", worker[0])(PICTURES).shape == (2, 1280)
    ((name, sha256),) = worker[1]
    assert name == "features:float32"
    assert len(sha256) == 64


def test_an_unknown_scheme_is_refused_and_features_are_known():
    width("features")
    width("reference")
    with pytest.raises(RecipeError, match="did you mean 'reference'"):
        width("refrence")


@pytest.fixture
def worker(tmp_path) -> tuple[Worker, list[tuple[str, str]]]:
    """A worker, and what it has pinned."""
    pinned: list[tuple[str, str]] = []
    here = {"seed": 0, "stage": "it", "device": "cpu", "threads": 1, "scratch": Path(tmp_path)}
    return Worker(**here, pin=lambda *what: pinned.append(what)), pinned


def test_a_border_of_one_colour_and_its_width_are_no_part_of_a_picture():
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 160, (20, 30, 3), np.uint8)
    for (top, bottom, left, right), colour in (((5, 2, 9, 1), 255), ((1, 1, 1, 1), 200)):
        sides = ((top, bottom), (left, right), (0, 0))
        bordered = np.pad(drawn, sides, constant_values=colour)
        # a pixel inside it goes, too
        np.testing.assert_array_equal(cut_out(bordered), drawn[1:-1, 1:-1])
    assert cut_out(drawn) is drawn
    plain = np.full((9, 9, 3), 7, np.uint8)
    assert cut_out(plain) is plain


def test_what_stands_round_a_shape_is_white_and_a_hole_in_it_stays():
    ring = np.full((40, 40, 3), (10, 200, 10), np.uint8)
    cv2.circle(ring, (20, 20), 12, (0, 0, 0), 4)
    cut = cut_out(ring)
    assert cut[0, 0].tolist() == [255, 255, 255]
    assert cut[len(cut) // 2, len(cut) // 2].tolist() == [10, 200, 10]


def test_views_hold_the_whole_picture_turned_either_way():
    page = np.full((60, 60, 3), 255, np.uint8)
    page[10:50, 20:40] = 0
    upright, left, right = views(page)
    assert upright.shape[:2] == (38, 18)
    assert ((left > 127) != (right[:, ::-1] > 127)).mean() < 0.02  # but for pixels at the edge
    height, width = left.shape[:2]  # 38 cos 8 + 18 sin 8, and the other way round
    assert (abs(height - 40), abs(width - 23)) <= (2, 2)
    dark = [int((view < 128).all(2).sum()) for view in (left, right)]
    assert all(abs(count - 38 * 18) < 120 for count in dark)
