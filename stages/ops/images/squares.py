"""Scales pictures to squares as networks read them: Pillow's bilinear filter, as torchvision's."""

import numpy as np
from numpy.typing import NDArray

RGB = NDArray[np.uint8]  # (H, W, 3)


def square_of(rgb: RGB, side: int, crop: bool = False) -> RGB:
    """Returns (side, side, 3) the whole picture, or its central square."""
    from PIL import Image

    height, width = rgb.shape[:2]
    short = min(height, width)
    left, top = (width - short) / 2, (height - short) / 2
    box = (left, top, left + short, top + short) if crop else None
    picture = Image.fromarray(rgb).resize((side, side), Image.Resampling.BILINEAR, box=box)
    return np.asarray(picture)
