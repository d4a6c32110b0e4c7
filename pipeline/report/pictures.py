"""Makes stored images small enough for a page.

Image bytes are untrusted: a picture that is far larger or costlier than ordinary ones is not
shown.
"""

import warnings
from base64 import b64encode
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageFilter, ImageOps

SMALL = 144  # pixels: shown at 112 at most, with reserve for dense screens
LARGE = 256  # pixels of samples that can be enlarged: 200 photographs take about 3 MB
JPEG_QUALITY = 78
BLURRED = 8  # an unsafe picture's sides by the deviation of its blur
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
JPEG = b"\xff\xd8"
MOST = {b"\xff\xda": 20, b"\xff\xe1": 1000}  # scans and EXIF segments of an ordinary JPEG
TILE_SIDES = 322, 323  # TIFF tags: a tile may be larger than its picture
MAX_TILE_PIXELS = 89_478_484  # Pillow's own limit for pictures
MAX_PYTHON_PIXELS = 2**22  # limit for run-length BMPs, which Pillow decodes in Python


@dataclass(frozen=True)
class SmallPicture:
    """A re-encoded picture, `jpeg` or `png`."""

    kind: str
    data: bytes
    width: int
    height: int


def picture(
    image: bytes | None, side: int = SMALL, is_unsafe: bool = False
) -> dict[str, Any] | None:
    """Returns src, width and height of the small picture; None if it cannot be decoded."""
    small = small_picture(image, side, is_unsafe)
    if small is None:
        return None
    source = f"data:image/{small.kind};base64,{b64encode(small.data).decode()}"
    return {"src": source, "width": small.width, "height": small.height}


def small_picture(
    image: bytes | None, side: int = SMALL, is_unsafe: bool = False
) -> SmallPicture | None:
    """Returns the picture with sides of at most `side` pixels, blurred past recognition if unsafe.

    None if it cannot be decoded.
    """
    if image is None:
        return None
    if image.startswith(JPEG) and any(image.count(mark) > most for mark, most in MOST.items()):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd EXIF gives warnings
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            pixels = _small(image, side)
            if is_unsafe:
                pixels = pixels.filter(ImageFilter.GaussianBlur(max(pixels.size) / BLURRED))
    except Exception:  # on hostile bytes decoders raise anything
        return None
    coded = {"jpeg": _coded(pixels, "JPEG", quality=JPEG_QUALITY, optimize=True)}
    coded["png"] = _coded(pixels, "PNG", optimize=True)  # drawings are smaller and sharp as PNG
    kind = min(coded, key=lambda name: len(coded[name]))
    return SmallPicture(kind, coded[kind], pixels.width, pixels.height)


def _small(body: bytes, side: int) -> Image.Image:
    """Returns the first frame, upright, on white."""
    opened = Image.open(BytesIO(body), formats=FORMATS)
    tile_area = np.prod([getattr(opened, "tag_v2", {}).get(tag, 1) for tag in TILE_SIDES])
    decoder = opened.tile[0][0] if opened.tile else ""  # a WebP has no tiles
    in_python_area = opened.width * opened.height if decoder == "bmp_rle" else 0
    if tile_area > MAX_TILE_PIXELS or in_python_area > MAX_PYTHON_PIXELS:
        raise Image.DecompressionBombError
    opened.draft("RGB", (2 * side, 2 * side))  # decodes a JPEG no larger than needed
    opened.load()
    image: Image.Image = opened
    if image.mode.startswith("I"):  # 16 bits of grey
        image = Image.fromarray(
            (np.clip(np.asarray(image, np.int32), 0, 0xFFFF) >> 8).astype(np.uint8)
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = ImageOps.exif_transpose(image.convert("RGB"))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    image.info.clear()  # else its comments and profiles would be written
    return image


def _coded(pixels: Image.Image, kind: str, **options: Any) -> bytes:
    sink = BytesIO()
    pixels.save(sink, kind, **options)
    return sink.getvalue()
