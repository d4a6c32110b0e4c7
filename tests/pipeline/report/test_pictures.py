"""Pictures for a page: small, the sharper format where it is smaller, none of bad bytes."""

from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from clipmill.pipeline.report.pictures import FORMATS, LARGE, SMALL, picture
from tests.hostile_pictures import commented, in_runs, saved, scanned, segmented, tiff

TILE = (322, 4, 1, 30_000), (323, 4, 1, 30_000), (324, 4, 1, 0), (325, 4, 1, 1)
HUGE = Image.new("1", (16_000, 6_000))


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
    assert (made["width"], made["height"]) == (SMALL, SMALL // 2)
    assert (picture(encoded(noise), LARGE) or {})["width"] == LARGE


@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_of_each_format_is_shown(kind):
    assert seen(encoded(np.full((30, 40, 3), 200, np.uint8), kind)).shape == (30, 40, 3)


def test_a_drawing_becomes_a_png_and_a_small_one_is_not_enlarged():
    made = picture(encoded(np.full((20, 30, 3), 250, np.uint8))) or {}
    assert made["src"].startswith("data:image/png")
    assert (made["width"], made["height"]) == (30, 20)


def seen(image: bytes) -> np.ndarray:
    """The small picture's pixels."""
    data = picture(image)["src"].partition(";base64,")[2]
    return np.asarray(Image.open(BytesIO(b64decode(data))).convert("RGB"))


def test_transparency_is_white_and_sixteen_bits_keep_their_upper_eight():
    clear = np.zeros((20, 30, 4), np.uint8)
    clear[:10] = (200, 30, 30, 255)
    assert (seen(encoded(clear))[[0, -1], 0] == [[200, 30, 30], [255] * 3]).all()
    grey = np.repeat(np.arange(0, 65536, 1024, np.uint16)[:, None], 8, axis=1)
    assert (seen(encoded(grey))[:, 0, 0] == np.arange(0, 256, 4)).all()


def test_a_picture_stands_upright_and_a_palette_is_no_grey():
    half = np.zeros((40, 20, 3), np.uint8)
    half[:20] = (0, 0, 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    sink = BytesIO()
    Image.fromarray(half).convert("P").convert("RGB").save(sink, "PNG", exif=exif)
    assert seen(sink.getvalue()).shape == (20, 40, 3)
    assert seen(sink.getvalue())[0, -1].tolist() == [0, 0, 255]


@pytest.mark.parametrize(
    "body",
    [scanned(1500, 900), segmented(20_000), in_runs(9000), tiff(*TILE), saved(HUGE, "png")],
    ids=["scans", "EXIF in pieces", "a BMP in runs", "a tile", "pixels"],
)
def test_a_picture_that_costs_hours_or_gigabytes_is_not_shown(body):
    assert picture(body) is None


def test_what_comes_with_a_picture_is_not_written_again():
    assert len(picture(commented(100_001))["src"]) < 10_000


@pytest.mark.parametrize(
    "image", [None, b"", b"<svg/>", encoded(np.zeros((9, 9, 3), np.uint8))[:30]]
)
def test_without_pixels_there_is_no_picture(image):
    assert picture(image) is None
