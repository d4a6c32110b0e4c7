"""Pictures for a page: small, the sharper format where it is smaller, none of bad bytes."""

from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from pipeline.report.pictures import SIDE, picture


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    sink = BytesIO()
    Image.fromarray(pixels).save(sink, kind)
    return sink.getvalue()


def test_a_photograph_becomes_a_small_jpeg_that_keeps_its_shape():
    noise = np.random.default_rng(0).integers(0, 256, (300, 600, 3), np.uint8)
    made = picture(encoded(noise)) or {}
    kind, _, data = made["src"].partition(";base64,")
    assert kind == "data:image/jpeg"
    assert Image.open(BytesIO(b64decode(data))).size == (made["width"], made["height"])
    assert (made["width"], made["height"]) == (SIDE, SIDE // 2)


def test_a_drawing_becomes_a_png_and_a_small_one_is_not_enlarged():
    made = picture(encoded(np.full((20, 30, 3), 250, np.uint8))) or {}
    assert made["src"].startswith("data:image/png")
    assert (made["width"], made["height"]) == (30, 20)


@pytest.mark.parametrize(
    "image", [None, b"", b"<svg/>", encoded(np.zeros((9, 9, 3), np.uint8))[:30]]
)
def test_without_pixels_there_is_no_picture(image):
    assert picture(image) is None
