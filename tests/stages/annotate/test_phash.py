"""PHash: rows without a picture, and which hash comes out. Values: tests/stages/ops."""

import io

import imagehash
import numpy as np
import pyarrow as pa
from PIL import Image

from clipmill.stages.annotate.phash import PHash
from clipmill.stages.ops.images.pdq import pdq
from clipmill.stages.ops.images.pixels import MAX_COLUMN_PIXELS, decoded


def png(height: int = 40, width: int = 50, seed: int = 0) -> bytes:
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def hashed(images: list, **settings) -> dict:
    image = pa.array(images, pa.binary())
    batch = pa.table({"uid": image, "image": image, "pixels": decoded(image)})
    return PHash(**settings).open(None)(batch).to_pydict()


def theirs(function, body: bytes) -> int:
    return int(str(function(Image.open(io.BytesIO(body)))), 16)


def test_rows_without_a_picture_are_null_with_a_reason_and_spare_their_neighbours():
    bodies = [None, png(seed=1), b"<html>", png(seed=2)]
    assert hashed(bodies) == {
        "phash": [
            None,
            theirs(imagehash.phash, bodies[1]),
            None,
            theirs(imagehash.phash, bodies[3]),
        ],
        "reason": ["no_image", None, "undecodable", None],
    }


def test_dhash_is_written_beside_where_asked_for():
    body = png()
    out = hashed([body, None], dhash=True)
    assert out["phash"] == [theirs(imagehash.phash, body), None]
    assert out["dhash"] == [theirs(imagehash.dhash, body), None]
    assert [column.name for column in PHash().writes] == ["phash"]


def test_pdq_and_its_quality_are_written_beside_where_asked_for():
    body = png()
    out = hashed([None, body, b"<html>"], pdq=True)
    ((code,), (quality,)) = pdq([np.asarray(Image.open(io.BytesIO(body)))])
    assert out["pdq"] == [None, code, None]
    assert out["pdq_quality"] == [None, quality, None]
    assert out["phash"][1] == theirs(imagehash.phash, body)


def test_a_transparent_picture_is_hashed_on_white():
    rgba = np.zeros((40, 40, 4), np.uint8)  # black where it can't be seen
    rgba[10:30, 5:20] = (200, 10, 10, 255)
    file = io.BytesIO()
    Image.fromarray(rgba).save(file, "png")
    white = Image.new("RGBA", (40, 40), "white")
    white.alpha_composite(Image.fromarray(rgba))
    assert hashed([file.getvalue()])["phash"] == [int(str(imagehash.phash(white)), 16)]


def test_a_picture_past_a_megapixel_is_hashed_as_shrunk_to_one():
    body = png(1_100, 1_000)
    image = pa.array([body], pa.binary())
    (shrunk,) = decoded(image).to_pylist()
    assert shrunk["height"] * shrunk["width"] <= MAX_COLUMN_PIXELS
    rgb = np.frombuffer(shrunk["rgb"], np.uint8).reshape(shrunk["height"], shrunk["width"], 3)
    assert hashed([body])["phash"] == [int(str(imagehash.phash(Image.fromarray(rgb))), 16)]
