"""The decoded image as a column that stages read: apart from its kernel, which a plan needs not."""

import pyarrow as pa

from metadata.schema import IMAGE, Derived


def decoded(images: pa.ChunkedArray) -> pa.Array:
    """PIXELS of encoded images; null where there is none or it can't be decoded."""
    from stages.ops.images import pixels_column

    return pixels_column(images)


PIXELS = Derived(
    name="pixels",
    dtype=pa.struct([("height", pa.int32()), ("width", pa.int32()), ("rgb", pa.binary())]),
    unit="8-bit RGB, row-major",
    doc="The decoded image, shrunk to 2^20 pixels where larger.",
    source=IMAGE,
    derive=decoded,
)
