"""Resize modes: sizes and pixels equal img2dataset's own; encoding keeps what it can."""

import io

import cv2
import numpy as np
import pytest

from clipmill.stages.ops.images.decode import decode
from clipmill.stages.ops.images.encoded import encode, probe
from clipmill.stages.ops.images.opened import ImageError
from clipmill.stages.ops.images.resize import reduction, resize
from clipmill.stages.ops.images.squares import square

MODES = ["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"]


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def their_resizer(monkeypatch):
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for a newer one
    from img2dataset.resizer import Resizer

    return Resizer


@pytest.mark.parametrize("only_if_bigger", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_modes_equal_img2dataset(their_resizer, mode, only_if_bigger):
    theirs = their_resizer(32, mode, only_if_bigger, encode_format="png", encode_quality=1)
    sides = [(20, 20), (32, 32), (31, 33), (20, 50), (50, 20), (33, 32), (97, 41), (45, 79), (1, 9)]
    for height, width in sides:
        rgb = noise(height, width)
        body, their_width, their_height, *_, error = theirs(io.BytesIO(encode(rgb, "png", 1)))
        assert error is None
        ours = resize(rgb, mode, 32, only_if_bigger=only_if_bigger)
        assert ours.shape == (their_height, their_width, 3)
        np.testing.assert_array_equal(ours, decode(body))


@pytest.mark.parametrize("method", ["nearest", "linear", "cubic", "area", "lanczos"])
def test_interpolations_equal_img2dataset(their_resizer, method):
    theirs = their_resizer(
        32,
        "keep_ratio",
        False,
        encode_format="png",
        encode_quality=1,
        upscale_interpolation=method,
        downscale_interpolation=method,
    )
    for rgb in (noise(20, 27), noise(61, 50)):
        body, *_ = theirs(io.BytesIO(encode(rgb, "png", 1)))
        ours = resize(rgb, "keep_ratio", 32, upscale=method, downscale=method)
        np.testing.assert_array_equal(ours, decode(body))


@pytest.mark.parametrize("mode", MODES)
def test_nothing_to_do_gives_the_same_object(mode):
    rgb = noise(20, 20)
    assert resize(rgb, mode, 32, only_if_bigger=True) is rgb


def test_a_line_never_grows_into_a_bomb():
    with pytest.raises(ImageError, match="too_many_pixels"):
        resize(noise(1, 30_000), "keep_ratio", 512)


@pytest.mark.parametrize(("name", "stored"), [("jpg", "jpeg"), ("png", "png"), ("webp", "webp")])
def test_encoded_bytes_decode_to_the_picture(name, stored):
    rgb = cv2.resize(noise(4, 4), (64, 48), interpolation=cv2.INTER_CUBIC)
    body = encode(rgb, name, 9 if name == "png" else 95)
    assert probe(body).format == stored
    assert np.abs(decode(body).astype(int) - rgb).mean() < (1 if name == "png" else 6)


def test_a_side_past_what_the_format_holds_is_refused():
    with pytest.raises(ImageError, match="too_many_pixels"):
        encode(np.zeros((1, 70_000, 3), np.uint8), "jpg", 95)


@pytest.mark.parametrize(
    ("mode", "size", "height", "width", "by"),
    [
        ("keep_ratio_largest", 256, 1200, 1600, 4),
        ("keep_ratio_largest", 256, 3000, 4000, 8),
        ("keep_ratio", 256, 3000, 4000, 4),  # its shorter side becomes 256
        ("center_crop", 256, 768, 4000, 2),
        ("border", 256, 767, 767, 1),
        ("no", 256, 3000, 4000, 1),
        ("border", 16, 36, 90_000, 2),  # which is 18 pixels high, and rounded
    ],
)
def test_a_picture_is_decoded_smaller_where_the_resize_leaves_room(mode, size, height, width, by):
    assert reduction(mode, size, height, width) == by


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize(("height", "width"), [(601, 799), (799, 601), (1200, 30)])
def test_decoded_smaller_it_has_the_size_and_nearly_the_pixels_of_the_full_one(mode, height, width):
    rgb = cv2.resize(noise(9, 9), (width, height), interpolation=cv2.INTER_CUBIC)
    body = encode(rgb ^ noise(height, width) % 8, "jpg", 90)
    for size in (16, 64, 100):
        whole = resize(decode(body), mode, size)
        shrink = reduction(mode, size, height, width)
        less = resize(decode(body, shrink=shrink), mode, size, full=(height, width))
        assert less.shape == whole.shape
        assert cv2.PSNR(less, whole) > 35


def test_a_square_is_a_picture_in_a_border():
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (48, 48), (47, 49), (300, 20), (1, 90), (96, 96), (20, 48)):
        rgb = rng.integers(0, 256, (*shape, 3), np.uint8)
        assert np.array_equal(square(rgb, 48), resize(rgb, "border", 48, upscale="cubic"))
