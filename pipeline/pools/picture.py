"""Draws SVG, opens bitmaps, and encodes pictures in the formats of the web."""

import io
import struct
from collections.abc import Callable
from textwrap import wrap

import resvg_py
from PIL import Image, ImageDraw, ImageFont

from clipmill.pipeline.pools.chance import Chance
from clipmill.pipeline.pools.drawing import Drawing

# File format to share. The last four are rare, but break naive decoders.
FORMATS = {
    "jpeg": 0.50,
    "png": 0.25,
    "webp": 0.20,
    "gif": 0.03,
    "cmyk": 0.005,
    "grey_alpha": 0.005,
    "rotated": 0.005,
    "progressive": 0.005,
}
BACKGROUNDS = ("#ffffff",) * 8 + ("#f3f3f3", "#fdf6e3", "#e8f1fb", "#f9e9ee")
DPI = 96.0  # without it, resvg takes sizes in inches as zero
UNTOUCHED = 0.6  # share of bitmaps that stay as published
MAX_SIDE_PX = 512  # of re-encoded bitmaps
MAX_PIXELS = 40_000_000  # larger bitmaps are decompression bombs: never decoded

EXTENSIONS = {b"\x89PNG": "png", b"GIF8": "gif", b"\xff\xd8\xff": "jpg", b"RIFF": "webp"}


def picture_of(drawing: Drawing, width_px: int) -> Image.Image:
    """Returns the drawing as RGBA: a vector at `width_px`, a bitmap no wider or higher."""
    if drawing.is_svg:
        return draw_svg(drawing.image.decode("utf-8", "replace"), width_px, drawing.color)
    with Image.open(io.BytesIO(drawing.image)) as opened:
        picture = opened.convert("RGBA")
    picture.thumbnail((width_px, width_px))
    return picture


def draw_svg(svg: str, width_px: int, color: str = "#222") -> Image.Image:
    """Draws an SVG as RGBA within `width_px` by 3 `width_px`; ValueError if it is broken.

    System fonts are not used: the bytes would depend on the machine.
    """
    png = resvg_py.svg_to_bytes(
        svg_string=svg.replace("currentColor", color),
        width=width_px,
        dpi=DPI,
        skip_system_fonts=True,
    )
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    picture.thumbnail((width_px, 3 * width_px))
    return picture


def on_background(picture: Image.Image, color: str = "#ffffff") -> Image.Image:
    """Composes a picture on a colour, as RGB: dark drawings would vanish on black."""
    ground = Image.new("RGBA", picture.size, color)
    return Image.alpha_composite(ground, picture.convert("RGBA")).convert("RGB")


def encode(picture: Image.Image, how: str, background: str, quality: int) -> bytes:
    """Encodes a picture in one of FORMATS."""
    out = io.BytesIO()
    if how == "png":
        picture.save(out, "PNG")
    elif how == "grey_alpha":
        picture.convert("LA").save(out, "PNG")
    elif how == "webp":
        on_background(picture, background).save(out, "WEBP", quality=quality, method=2)
    elif how == "gif":
        on_background(picture, background).quantize(64).save(out, "GIF")
    elif how == "cmyk":
        on_background(picture, background).convert("CMYK").save(out, "JPEG", quality=quality)
    elif how == "rotated":
        exif = Image.Exif()
        exif[0x0112] = 6  # orientation: turn 90° clockwise; the pixels are turned back
        turned = on_background(picture, background).transpose(Image.Transpose.ROTATE_90)
        turned.save(out, "JPEG", quality=quality, exif=exif)
    else:
        on_background(picture, background).save(
            out, "JPEG", quality=quality, progressive=how == "progressive"
        )
    return out.getvalue()


def clean_file(drawing: Drawing, chance: Chance) -> tuple[bytes, Callable[[], Image.Image]]:
    """Makes a faultless file of a drawing, and a function that returns its picture in RGB.

    60 % of bitmaps stay as published; the others are encoded again, at most 512 px.
    """
    if drawing.is_svg:
        low_px, high_px = drawing.widths_px
        width_px = low_px + int((high_px - low_px + 1) * chance.u("width") ** 1.4)  # most are small
        picture = picture_of(drawing, width_px)
    elif chance.u("untouched") < UNTOUCHED:
        return drawing.image, lambda: on_background(picture_of(drawing, MAX_SIDE_PX))
    else:
        picture = picture_of(drawing, chance.between("width", 64, MAX_SIDE_PX))
    background = chance.pick("background", BACKGROUNDS)
    how = chance.weighted("format", FORMATS) or "jpeg"
    file = encode(picture, how, background, chance.between("quality", 70, 93))
    return file, lambda: on_background(picture, background)


def extension(file: bytes) -> str:
    """Returns the suffix for a file's bytes; bmp if no magic number fits."""
    return next((name for magic, name in EXTENSIONS.items() if file.startswith(magic)), "bmp")


def size_px(file: bytes) -> tuple[int, int]:
    """Returns width and height from the header; decodes nothing, so bombs are harmless."""
    if file.startswith(b"\x89PNG"):
        width, height = struct.unpack(">II", file[16:24])
        return width, height
    with Image.open(io.BytesIO(file)) as opened:
        return opened.size


def printed(text: str, width_px: int, font_px: int = 18) -> Image.Image:
    """Prints dark text on paper, in RGB, wrapped to the width."""
    font = ImageFont.load_default(font_px)
    columns = max(1, width_px // max(1, font_px // 2))
    words = " ".join(text.split())
    lines = wrap(words, columns, break_long_words=False, break_on_hyphens=False) or [""]
    paper = Image.new("RGB", (width_px, (len(lines) + 1) * int(font_px * 1.4)), "#fbfaf5")
    brush = ImageDraw.Draw(paper)
    brush.multiline_text((font_px // 2, font_px // 2), "\n".join(lines), "#222222", font)
    return paper
