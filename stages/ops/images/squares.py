"""Decodes pictures to squares of one size, as networks are trained on."""

from collections import Counter
from collections.abc import Iterable, Iterator

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import IMAGE
from clipmill.stages.ops.images.area import in_white_square, shrink
from clipmill.stages.ops.images.decode import decode
from clipmill.stages.ops.images.opened import RGB, ImageError

# Shapes: N rows, S pixels a side.


def square(rgb: RGB, size: int, upscale: int = cv2.INTER_CUBIC) -> RGB:
    """Returns (size, size, 3) the whole picture, its longer side at `size`, centred on white."""
    scale = size / max(rgb.shape[:2])
    height, width = (max(1, round(side * scale)) for side in rgb.shape[:2])
    if scale < 1:
        rgb = shrink(rgb, width, height)
    elif scale > 1:
        # OpenCV says only that it is an array: it stays of bytes.
        rgb = cv2.resize(rgb, (width, height), interpolation=upscale)  # type: ignore[assignment]
    return in_white_square(rgb, size)


def decoded(
    batches: Iterable[pa.Table], image_NSS3: NDArray[np.uint8], counts: Counter[str]
) -> Iterator[tuple[pa.Table, NDArray[np.bool_]]]:
    """Decodes pictures into the array; yields the rows that decode, and (N,) a flag for each row.

    Yielded rows have no image column. Pictures leave no gaps; other rows are counted by reason.
    """
    done = 0
    for batch in batches:
        fine_N = np.zeros(len(batch), bool)
        for row, body in enumerate(batch[IMAGE.name].to_pylist()):
            try:
                image_NSS3[done] = square(decode(body or b""), image_NSS3.shape[1])
            except ImageError:
                counts["no_image" if body is None else "undecodable"] += 1
            else:
                fine_N[row] = True
                done += 1
        yield batch.drop_columns([IMAGE.name]).filter(pa.array(fine_N)), fine_N
