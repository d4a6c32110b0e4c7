"""An image as a server gets it."""

from clipmill.stages.ops.images import decode, probe
from clipmill.stages.ops.resize import encode, reduction, resize

QUALITY = 90  # of JPEG: what most data sets are stored with


def jpeg_of(body: bytes, side: int) -> bytes:
    """The image as JPEG, its longer side at most `side`, its aspect kept; ImageError for no image.

    A plain JPEG that fits keeps its bytes.
    """
    header = probe(body)
    full = header.height, header.width
    if header.format == "jpeg" and header.is_plain and max(full) <= side:
        return body
    rgb = resize(
        decode(body, shrink=reduction("keep_ratio_largest", side, *full)),
        "keep_ratio_largest",
        side,
        only_if_bigger=True,
        upscale="area",
        downscale="area",
        full=full,
    )
    return encode(rgb, "jpg", QUALITY)
