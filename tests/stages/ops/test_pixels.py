"""The column of decoded images: there and back, in slices and chunks, bounded in size."""

import numpy as np
import pyarrow as pa
from PIL import Image

from clipmill.stages.ops.images.decode import decode
from clipmill.stages.ops.images.pixels import MAX_COLUMN_PIXELS, PIXELS, decoded, rows_of, shrunk
from tests.stages.ops.test_images import encoded, noise


def test_pixels_of_a_column_and_back():
    small, wide = encoded(noise(2, 3), "png"), encoded(noise(4, 1), "png")
    images = pa.chunked_array([[small, None], [], [b"<html>", wide]], pa.binary())
    pixels = decoded(images)
    assert pixels.type == PIXELS.dtype
    assert pixels.is_null().to_pylist() == [False, True, True, False]
    first, null, bad, last = rows_of(pixels)
    assert null is bad is None
    np.testing.assert_array_equal(first, decode(small))
    np.testing.assert_array_equal(last, decode(wide))
    assert not first.flags.writeable
    assert np.shares_memory(last, np.frombuffer(pixels.buffers()[-1], np.uint8))  # no copy


def test_a_slice_and_chunks_of_pixels_give_their_own_rows():
    bodies = [encoded(noise(n, 2), "png") for n in (1, 2, 3)]
    pixels = decoded(pa.array([bodies[0], None, bodies[1], bodies[2]]))
    chunked = pa.chunked_array([pixels[1:3], pixels[3:]])
    assert [rgb is None or len(rgb) for rgb in rows_of(chunked)] == [True, 2, 3]
    assert rows_of(pixels[2:])[1].tolist() == decode(bodies[2]).tolist()


def test_an_empty_column_keeps_its_type():
    pixels = decoded(pa.chunked_array([], pa.binary()))
    assert pixels.type == PIXELS.dtype
    assert rows_of(pixels) == []


def test_a_column_of_large_images_is_bounded_and_keeps_their_shape():
    body = encoded(Image.new("RGB", (4000, 1000), (10, 20, 30)), "png")
    (rgb,) = rows_of(decoded(pa.array([body])))
    assert rgb.shape == (512, 2048, 3)
    assert rgb.shape[0] * rgb.shape[1] <= MAX_COLUMN_PIXELS
    assert (rgb == [10, 20, 30]).all()


def test_a_line_is_bounded_too():
    line = np.zeros((1, 3 * MAX_COLUMN_PIXELS, 3), np.uint8)
    assert shrunk(line).shape == (1, MAX_COLUMN_PIXELS, 3)
    assert shrunk(line.transpose(1, 0, 2)).shape == (MAX_COLUMN_PIXELS, 1, 3)
