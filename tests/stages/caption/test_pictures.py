"""The image that a server gets."""

import numpy as np
import pytest

from clipmill.stages.ops.images.decode import decode
from clipmill.stages.ops.images.encoded import encode, probe
from clipmill.stages.ops.images.opened import ImageError
from clipmill.stages.ops.images.resize import jpeg_of


def picture(width: int, height: int, kind: str = "png") -> bytes:
    x_W, y_H1 = np.arange(width), np.arange(height)[:, None]
    rgb = np.stack(np.broadcast_arrays(x_W * 255 // width, y_H1 * 255 // height, 90), axis=-1)
    return encode(rgb.astype(np.uint8), kind, 9 if kind == "png" else 95)


@pytest.mark.parametrize(
    ("size", "sent"),
    [
        ((800, 400), (448, 224)),
        ((300, 900), (149, 448)),
        ((448, 100), (448, 100)),
        ((30, 20), (30, 20)),
        ((3000, 2), (448, 1)),
    ],
)
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_the_longer_side_fits_and_the_aspect_stays(size, sent, kind):
    body = picture(size[0], size[1], kind)
    jpeg = jpeg_of(body, 448)
    header = probe(jpeg)
    assert (header.format, header.width, header.height) == ("jpeg", *sent)
    assert (jpeg == body) == (kind == "jpg" and sent == size), "a JPEG that fits keeps its bytes"


def test_pixels_are_the_pictures():
    body = picture(1600, 1200, "jpg")
    small = decode(jpeg_of(body, 448)).astype(int)
    expected = decode(body)[::25, ::25].astype(int)  # of a gradient: each pixel near its block's
    step = small[:: small.shape[0] // 48, :: small.shape[1] // 64][:48, :64]
    assert abs(step - expected[: step.shape[0], : step.shape[1]]).mean() < 6


@pytest.mark.parametrize("body", [b"", b"<html>", picture(640, 640)[:200]])
def test_what_is_no_picture_is_refused(body):
    with pytest.raises(ImageError):
        jpeg_of(body, 448)
