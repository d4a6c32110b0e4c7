"""What embeds pictures: any scheme, or the features of a frozen network; weights are pinned."""

from pathlib import Path

import numpy as np
import pytest

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.stage import Worker
from clipmill.stages.models.image_text import load
from clipmill.stages.models.images import embedder, views, width

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
    assert width("features") == width("features:float32")
    with pytest.raises(RecipeError, match="no precision 'float16'"):
        width("features:float16")
    width("reference")
    with pytest.raises(RecipeError, match="did you mean 'reference'"):
        width("refrence")


@pytest.fixture
def worker(tmp_path) -> tuple[Worker, list[tuple[str, str]]]:
    """A worker, and what it has pinned."""
    pinned: list[tuple[str, str]] = []
    here = {"seed": 0, "stage": "it", "device": "cpu", "threads": 1, "scratch": Path(tmp_path)}
    return Worker(**here, pin=lambda *what: pinned.append(what)), pinned


def test_views_hold_the_whole_picture_turned_either_way():
    page = np.full((60, 60, 3), 255, np.uint8)
    page[10:50, 20:40] = 0
    upright, left, right = views(page)
    assert upright.shape[:2] == (40, 20)
    assert ((left > 127) != (right[:, ::-1] > 127)).mean() < 0.02  # but for pixels at the edge
    height, width = left.shape[:2]  # 40 cos 8 + 20 sin 8, and the other way round
    assert (abs(height - 42), abs(width - 25)) <= (2, 2)
    line = np.zeros((2, 40_000, 3), np.uint8)  # longer than OpenCV turns
    line[:, ::2] = 200
    assert all(view.shape[1] > 4000 for view in views(line))
    dark = [int((view < 128).all(2).sum()) for view in (left, right)]
    assert all(abs(count - 40 * 20) < 120 for count in dark)
