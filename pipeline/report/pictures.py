"""Stored images made small enough for a page, as data URIs."""

import importlib
from base64 import b64encode
from io import BytesIO
from typing import Any

from PIL import Image

SIDE = 144  # pixels: shown at 112, so that a dense screen has some to spare
JPEG_QUALITY = 78


def picture(image: bytes | None) -> dict[str, Any] | None:
    """src, width and height of the small picture; None without an image that can be decoded."""
    images = importlib.import_module("stages.ops.images")  # its guards against bombs are ours
    if image is None:
        return None
    try:
        pixels = Image.fromarray(images.decode(image))
    except images.ImageError:
        return None
    pixels.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    coded = {"jpeg": _coded(pixels, "JPEG", quality=JPEG_QUALITY, optimize=True)}
    coded["png"] = _coded(pixels, "PNG", optimize=True)  # a drawing is smaller so, and sharp
    kind = min(coded, key=lambda name: len(coded[name]))
    source = f"data:image/{kind};base64,{b64encode(coded[kind]).decode()}"
    return {"src": source, "width": pixels.width, "height": pixels.height}


def _coded(pixels: Image.Image, kind: str, **options: Any) -> bytes:
    sink = BytesIO()
    pixels.save(sink, kind, **options)
    return sink.getvalue()
