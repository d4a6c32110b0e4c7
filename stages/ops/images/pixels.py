"""The decoded image as a column that stages read; a plan imports no decoder for it."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import IMAGE, Derived
from clipmill.pipeline.errors import ShardError

# Shapes: N rows of a batch, H height, W width.

UNDECODABLE = {  # advice if most rows are undecodable
    "undecodable": "open some of these pictures: is the column that is read one of images?"
}
RGB = NDArray[np.uint8]  # (H, W, 3)
# A batch of decoded images must fit in memory for any pool: 64 of these are 200 MB.
MAX_COLUMN_PIXELS = 1024 * 1024


def decoded(images: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Returns PIXELS of a column of encoded images; null if there is none or it can't be decoded.

    Images past MAX_COLUMN_PIXELS are shrunk to it, so that memory is bounded by the batch.
    """
    rows = [  # a decoder takes one at a time
        None if rgb is None else {"height": len(rgb), "width": rgb.shape[1], "rgb": rgb.data}
        for rgb in map(_decoded, images.to_pylist())
    ]
    array = pa.array(rows, PIXELS.dtype)
    if isinstance(array, pa.ChunkedArray):
        raise ShardError(
            found=f"{len(rows)} decoded images take {array.nbytes:,} bytes, an array holds 2 GiB",
            where="the pixels of one batch",
            do="lower the `batch_rows` of the stage that reads pixels",
        )
    return array


def _decoded(body: bytes | None) -> RGB | None:
    # OpenCV, which a plan does without.
    from clipmill.stages.ops.images.decode import decode
    from clipmill.stages.ops.images.opened import ImageError

    try:
        return None if body is None else shrunk(decode(body))
    except ImageError:
        return None


def shrunk(rgb: RGB) -> RGB:
    """Returns the picture as PIXELS has it: no larger than MAX_COLUMN_PIXELS."""
    height, width = rgb.shape[:2]
    scale = (MAX_COLUMN_PIXELS / (height * width)) ** 0.5
    if scale >= 1:
        return rgb
    # Numba: 60 MB, which most workers do without.
    from clipmill.stages.ops.images.area import shrink

    width, height = (min(max(1, int(side * scale)), MAX_COLUMN_PIXELS) for side in (width, height))
    return shrink(rgb, width, height)


def rows_of(pixels: pa.ChunkedArray | pa.Array) -> list[RGB | None]:
    """Returns (H, W, 3) of each row of a PIXELS column, read-only, not copied; None if null."""
    rows: list[RGB | None] = []
    for chunk in pixels.chunks if isinstance(pixels, pa.ChunkedArray) else [pixels]:
        height, width, rgb = chunk.flatten()  # nulls and offset of the struct reach its fields
        _, offsets, data = rgb.buffers()
        bounds = np.frombuffer(offsets, np.int32)[rgb.offset : rgb.offset + len(rgb) + 1]
        bytes_ = np.frombuffer(data or b"", np.uint8)
        bytes_.flags.writeable = False  # other stages of the chain read the same decode
        for row, (h, w) in enumerate(zip(height.to_pylist(), width.to_pylist(), strict=True)):
            view = bytes_[bounds[row] : bounds[row + 1]]
            rows.append(None if h is None else view.reshape(h, w, 3))
    return rows


PIXELS = Derived(
    name="pixels",
    dtype=pa.struct([("height", pa.int32()), ("width", pa.int32()), ("rgb", pa.binary())]),
    unit="8-bit RGB, row-major",
    doc="The decoded image, shrunk to 2^20 pixels where larger.",
    source=IMAGE,
    derive=decoded,
)
