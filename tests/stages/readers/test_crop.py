"""The random crop against torchvision's, and where it may lie."""

import cv2
import numpy as np
import pytest
from PIL import Image

from clipmill.stages.ops.images.decode import decode
from clipmill.stages.ops.images.opened import ImageError
from clipmill.stages.readers.streamed import CROP_AREA, CROP_ASPECT, box_of, crop


def photo(height: int, width: int) -> bytes:
    """A JPEG with detail of every size."""
    rng = np.random.default_rng(0)
    image = np.zeros((height, width, 3))
    for side in (4, 16, 64):
        noise = rng.normal(0, 400 / side, (side, side, 3)).astype(np.float32)
        image += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    pixels = np.clip(128 + image, 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


@pytest.fixture(scope="module")
def transforms():
    """Torchvision's. Their import takes seconds: those of no test."""
    from torchvision import transforms

    return transforms


@pytest.mark.parametrize("shape", [(90, 120), (40, 30), (300, 64)])
@pytest.mark.parametrize("coin", [1, 2**63])
def test_it_is_torchvisions_resized_crop_of_that_box(shape, coin, transforms):
    body = photo(*shape)
    top, left, height, width = box_of(*shape, coin)
    cubic = transforms.InterpolationMode.BICUBIC
    theirs = transforms.functional.resized_crop(
        Image.fromarray(decode(body)), top, left, height, width, [64, 64], cubic
    )
    np.testing.assert_array_equal(crop(body, 64, coin), np.asarray(theirs))


def test_one_of_a_picture_decoded_smaller_is_near_that_of_the_whole():
    body = photo(900, 1200)
    top, left, height, width = box_of(900, 1200, 5)
    whole = Image.fromarray(decode(body)[top : top + height, left : left + width])
    exact = np.asarray(whole.resize((64, 64), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(crop(body, 64, 5) - exact).mean() < 1.5


def test_boxes_lie_within_the_picture_and_have_the_areas_and_aspects_that_are_drawn():
    boxes = np.array([box_of(400, 500, coin) for coin in range(1, 2000)])
    top, left, height, width = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 400).all()
    assert (left + width <= 500).all()
    share, aspect = height * width / 200_000, width / height
    assert CROP_AREA[0] - 0.005 < share.min() < 0.905
    assert 0.95 < np.quantile(share, 0.9) <= CROP_AREA[1]
    assert CROP_ASPECT[0] - 0.01 < aspect.min() < aspect.max() < CROP_ASPECT[1] + 0.01
    assert len({tuple(box) for box in boxes}) > 300


@pytest.mark.parametrize(
    ("shape", "box"),
    [((1000, 10), (493, 0, 13, 10)), ((10, 1000), (0, 493, 10, 13)), ((1, 1), (0, 0, 1, 1))],
)
def test_where_no_draw_fits_it_is_the_middle_as_torchvision_takes_it(shape, box):
    top, left, height, width = box_of(*shape, 7)
    assert (height, width) == box[2:]
    assert abs(top - box[0]) <= 1
    assert abs(left - box[1]) <= 1


def test_what_does_not_decode_is_an_image_error():
    with pytest.raises(ImageError):
        crop(b"<html>", 64, 1)
