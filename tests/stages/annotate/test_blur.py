"""annotate.blur: pixels, bytes that stay, one bad box and its row."""

import io

import numpy as np
import pyarrow as pa
from PIL import Image

from clipmill.stages.annotate.blur import Blur
from clipmill.stages.ops.images.blur import blurred
from clipmill.stages.ops.images.encoded import encode
from tests.stages.networks import drawn, worker

ONE = [0.1, 0.2, 0.6, 0.7]


def png(rgb: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "png")
    return file.getvalue()


def test_pictures_with_boxes_are_blurred_and_others_keep_their_bytes(tmp_path):
    rgb = drawn((40, 60), (30, 20), (10, 10), (10, 10), (10, 10))
    image = [*map(png, rgb), None, b"<html>"]
    boxes = [[ONE], [], None, [[np.nan, 0, 1, 1]], [[0.9, 0, 0.1, 1]], [ONE], [ONE]]
    batch = pa.table(
        {
            "image": pa.array(image, pa.binary()),
            "face_bboxes": pa.array(boxes, pa.list_(pa.list_(pa.float64()))),
        }
    )
    blur = Blur(encode_format="png", encode_quality=1)
    out = blur.open(worker(tmp_path))(batch).to_pydict()
    soft = np.asarray(Image.open(io.BytesIO(out["image"][0])))
    np.testing.assert_array_equal(soft, blurred(rgb[0], [ONE]))
    assert out["image"][1] == image[1]
    assert out["image"][2:] == [None] * 5
    assert out["reason"] == [
        *(None, None, "no_boxes", "bad_box", "bad_box", "no_image", "undecodable")
    ]
    assert (out["width"][:2], out["height"][:2]) == ([60, 20], [40, 30])
    assert out["image_bytes"][:2] == [len(out["image"][0]), len(image[1])]
    webp = Blur().open(worker(tmp_path))(batch)["image"][0].as_py()
    assert Image.open(io.BytesIO(webp)).format == "WEBP"


def test_a_png_at_the_default_quality_is_packed_most_and_nothing_is_said(tmp_path, capfd):
    (rgb,) = drawn((20, 30))
    batch = pa.table({"image": [png(rgb)], "face_bboxes": [[ONE]]})
    image = Blur(encode_format="png").open(worker(tmp_path))(batch)["image"][0].as_py()
    assert image == encode(blurred(rgb, [ONE]), "png", 9)
    assert capfd.readouterr().err == ""


def test_a_strip_past_what_webp_holds_is_a_png(tmp_path):
    (rgb,) = drawn((1, 20_000))
    batch = pa.table({"image": [png(rgb)], "face_bboxes": [[ONE]]})
    image = Blur().open(worker(tmp_path))(batch)["image"][0].as_py()
    assert image == encode(blurred(rgb, [ONE]), "png", 9)
