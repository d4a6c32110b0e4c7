"""Measures of images against values worked out by hand."""

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from clipmill.stages.annotate.image import annotate, colorfulness, look
from clipmill.stages.ops.images.pixels import decoded


def png(rgb: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "png")
    return out.getvalue()


def batch(*bodies: bytes | None) -> pa.Table:
    image = pa.array(bodies, pa.binary())
    return pa.table({"image": image, "pixels": decoded(image)})


def flat(rgb: tuple[int, int, int], height: int = 4, width: int = 4) -> np.ndarray:
    return np.full((height, width, 3), rgb, np.uint8)


def stripes(height: int = 4) -> np.ndarray:
    """Black and white rows, in turn."""
    grey = np.arange(height)[:, None, None] % 2 * 255
    return np.broadcast_to(grey, (height, 4, 3)).astype(np.uint8)


def test_measures_of_a_flat_grey_picture():
    row = annotate(batch(png(flat((80, 80, 80), height=2, width=6)))).to_pylist()[0]
    assert row == {
        "image_format": "png",
        "frames": 1,
        "min_side": 2,
        "aspect_ratio": 3.0,
        "mean_luma": 80.0,
        "luma_std": 0.0,
        "colorfulness": 0.0,
        "sharpness": 0.0,
        "entropy": 0.0,
        "flat_share": 1.0,
        "reason": None,
    }


@pytest.mark.parametrize(
    ("rgb", "luma"), [((255, 0, 0), 76), ((0, 255, 0), 150), ((0, 0, 255), 29)]
)
def test_luma_is_rec_601(rgb, luma):
    assert look(flat(rgb))["mean_luma"] == luma


def test_half_black_half_white_deviates_by_half_the_range():
    assert look(stripes())["luma_std"] == 127.5


def test_sharpness_is_the_variance_of_the_laplacian():
    # Inside, every pixel of a stripe differs by 255 from two of its four neighbours: ±510. The
    # edge rows see their one neighbour twice, by reflection.
    assert look(stripes())["sharpness"] == 510.0**2


def test_entropy_and_the_share_of_the_most_frequent_colour():
    assert look(stripes())["entropy"] == 1.0
    assert look(stripes())["flat_share"] == 0.5
    parts = [flat((0, 0, 0), 2), flat((255, 255, 255), 1), flat((80, 80, 80), 1)]
    assert look(np.concatenate(parts))["entropy"] == 1.5
    near = np.concatenate([flat((80, 80, 80)), flat((87, 80, 80)), flat((88, 80, 80))])
    assert look(near)["flat_share"] == pytest.approx(2 / 3)  # 80 to 87 is one step of 32


def test_blur_lowers_sharpness():
    rgb = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    blurred = (rgb[:-1].astype(int) + rgb[1:]) // 2
    assert look(blurred.astype(np.uint8))["sharpness"] < look(rgb)["sharpness"] / 1.5


@pytest.mark.parametrize(
    ("rgb", "value"),
    [
        ((50, 50, 50), 0),
        ((255, 0, 0), 0.3 * np.hypot(255, 127.5)),  # rg = 255, yb = 127.5, no spread
        ((0, 0, 255), 0.3 * 255),
    ],
)
def test_colorfulness_of_one_colour(rgb, value):
    assert colorfulness(flat(rgb)) == pytest.approx(value)


def test_colorfulness_of_red_beside_green():
    both = np.concatenate([flat((255, 0, 0)), flat((0, 255, 0))])
    # rg is 255 and -255: mean 0, deviation 255; yb is 127.5 everywhere
    assert colorfulness(both) == pytest.approx(255 + 0.3 * 127.5)


def test_row_without_pixels_is_null_with_a_reason_and_spares_its_neighbours():
    out = annotate(batch(None, b"<html>", png(flat((1, 2, 3)))))
    assert out["reason"].to_pylist() == ["no_image", "undecodable", None]
    assert out["min_side"].to_pylist() == [None, None, 4]
    assert out["image_format"].to_pylist() == [None, None, "png"]


def test_size_is_the_file_s_own_though_its_pixels_are_shrunk():
    out = annotate(batch(png(flat((9, 9, 9), height=1000, width=4000))))
    assert out["min_side"].to_pylist() == [1000]
    assert out["aspect_ratio"].to_pylist() == [4.0]
