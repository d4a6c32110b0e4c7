"""Injects faults into pictures and links: the share of each fault, and how it is made."""

import io
import zlib
from functools import lru_cache
from hashlib import blake2b
from struct import pack
from typing import Any

import fontpkg
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

from clipmill.pipeline.pools.chance import Chance
from clipmill.pipeline.pools.drawing import Drawing
from clipmill.pipeline.pools.picture import extension, on_background, printed

TEXT_ISSUES = {"swapped": 0.13, "boilerplate": 0.10, "spam": 0.03, "garbled": 0.02}
IMAGE_ISSUES = {"tiny": 0.02, "placeholder": 0.015, "aspect": 0.015, "text_only": 0.012}
OVERLAYS = ("drawn_text", "watermark")  # on request only: pools without them keep their bytes
NO_LONGER_THE_SOURCE = frozenset({"placeholder", "text_only", "bomb"})  # picture replaced
FATAL_LINKS = {
    "404": 0.035,
    "html": 0.014,
    "truncated": 0.010,
    "changed": 0.008,
    "corrupt": 0.008,
    "403": 0.006,
    "410": 0.004,
    "500": 0.004,
    "svg": 0.004,
    "opt_out": 0.004,
    "unresolvable": 0.002,
    "refused": 0.002,
    "hang": 0.0015,
    "redirect_loop": 0.0015,
}
HARMLESS_LINKS = {"redirect": 0.025, "slow": 0.010, "wrong_content_type": 0.012, "503_once": 0.008}
LINK_ISSUES = FATAL_LINKS | HARMLESS_LINKS
NO_FILE = frozenset(  # no file is ever read
    ("404", "403", "410", "500", "unresolvable", "refused", "hang", "redirect_loop")
)
NEAR_OPS = ("resize", "jpeg", "crop", "mirror", "border", "grey", "bright", "band")

PLACEHOLDERS = (
    ("Image not available", 200, 160),
    ("No photo", 160, 160),
    ("This image was removed", 240, 180),
    ("Coming soon", 120, 120),
    ("404", 300, 200),
)
BOMB_SIDE_PX = 30_000
OVERSIZED_PX = (3_200, 2_720)  # times three bytes: a BMP of 26 MB
UNLISTENED_PORT = 9  # the discard service, which no machine runs today
OPT_OUTS = ("noai", "noai, noimageai", "noindex", "noimageindex")


def faulty_file(issue: str, clean: Image.Image, text: str, chance: Chance) -> bytes:
    """Makes the file of a picture with an image issue."""
    if issue == "bomb":
        return bomb()
    if issue == "placeholder":
        return placeholder(chance.between("placeholder", 0, len(PLACEHOLDERS) - 1))
    if issue == "oversized":
        return _saved(clean.resize(OVERSIZED_PX, Image.Resampling.NEAREST), "BMP")
    if issue == "tiny":
        side_px = chance.between("tiny", 2, 15)
        return _saved(clean.resize((side_px, side_px)), "PNG")
    if issue == "aspect":
        return _saved(_strip(clean, chance), "JPEG", quality=85)
    if issue in OVERLAYS:
        return _saved(_overlaid(clean, text, issue == "watermark", chance), "JPEG", quality=88)
    return _saved(printed(text, chance.between("paper", 180, 340)), "JPEG", quality=88)


def near_copy(clean: Image.Image, how: str, text: str, chance: Chance) -> bytes:
    """Makes a JPEG near copy of a picture, changed by one of NEAR_OPS."""
    width, height = clean.size
    quality = chance.between("quality", 72, 92)
    picture = clean
    if how == "resize":
        scale = 0.5 + 0.4 * chance.u("scale")
        picture = clean.resize((max(16, int(width * scale)), max(16, int(height * scale))))
    elif how == "jpeg":
        quality = chance.between("low_quality", 15, 35)
    elif how == "crop":
        cut = 0.04 + 0.08 * chance.u("cut")
        x_px, y_px = int(width * cut), int(height * cut)
        picture = clean.crop(
            (x_px, y_px, max(x_px + 1, width - x_px), max(y_px + 1, height - y_px))
        )
    elif how == "mirror":
        picture = ImageOps.mirror(clean)
    elif how == "border":
        picture = ImageOps.expand(clean, max(3, width // 16), chance.pick("frame", FRAMES))
    elif how == "grey":
        picture = ImageOps.grayscale(clean).convert("RGB")
    elif how == "bright":
        picture = ImageEnhance.Brightness(clean).enhance(1.12 + 0.2 * chance.u("bright"))
    else:
        band = printed(text, width, font_px=max(8, width // 14))
        picture = clean.copy()
        picture.paste(band, (0, max(height - band.height, height * 3 // 4)))
    return _saved(picture, "JPEG", quality=quality)


FRAMES = ("#000000", "#444444", "#b08d57", "#ffffff")


@lru_cache(maxsize=len(PLACEHOLDERS))
def placeholder(index: int) -> bytes:
    """Makes a card that sites show for a missing picture: equal bytes on many rows."""
    text, width, height = PLACEHOLDERS[index]
    card = Image.new("RGB", (width, height), "#e6e6e6")
    card.paste(printed(text, width - 20, font_px=16), (10, height // 3))
    return _saved(card, "PNG")


@lru_cache(maxsize=1)
def bomb() -> bytes:
    """Makes a PNG of about 110 kB that unpacks to 900 million one-bit pixels."""
    # A hundred lines, 300 times: after a full flush, deflate blocks can be repeated.
    lines = bytes(100 * (1 + BOMB_SIDE_PX // 8))
    squeeze = zlib.compressobj(9, wbits=-15)
    block = squeeze.compress(lines) + squeeze.flush(zlib.Z_FULL_FLUSH)
    repeats, checksum = BOMB_SIDE_PX // 100, 1
    for _ in range(repeats):
        checksum = zlib.adler32(lines, checksum)
    body = b"\x78\xda" + block * repeats + squeeze.flush() + pack(">I", checksum)
    header = pack(">IIBBBBB", BOMB_SIDE_PX, BOMB_SIDE_PX, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        pack(">I", len(data)) + name + data + pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def served_file(link_issue: str | None, file: bytes, drawing: Drawing, chance: Chance) -> bytes:
    """Returns the bytes that a link serves today; the crawl had stored `file`."""
    if link_issue == "html":
        return b"<!doctype html><title>Sign in</title><p>Please sign in to see this picture.</p>"
    if link_issue == "truncated":
        return file[: int(len(file) * (0.3 + 0.5 * chance.u("truncated")))]
    if link_issue == "corrupt":
        return _overwritten(file, chance)
    if link_issue == "changed":
        return _saved(_mosaic(chance), "JPEG" if extension(file) == "jpg" else "PNG")
    if link_issue == "svg":
        return drawing.image if drawing.is_svg else SVG_CARD
    return file


SVG_CARD = (
    b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100">'
    b'<rect width="100" height="100" fill="#cde"/></svg>'
)


def behaviour(link_issue: str | None, path: str, chance: Chance) -> dict[str, dict[str, Any]]:
    """Returns path to server behaviour; empty if the file, or its absence, is enough."""
    if link_issue in ("403", "410", "500"):
        return {path: {"status": int(link_issue)}}
    if link_issue == "503_once":
        return {path: {"status": 503, "times": 1}}
    if link_issue == "html":
        return {path: {"content_type": "text/html; charset=utf-8"}}
    if link_issue == "svg":
        return {path: {"content_type": "image/svg+xml"}}
    if link_issue == "opt_out":
        return {path: {"headers": {"X-Robots-Tag": chance.pick("opt_out", OPT_OUTS)}}}
    if link_issue == "hang":
        return {path: {"hang": True}}
    if link_issue == "redirect_loop":
        return {path: {"redirect": f"/{path}.2"}, f"{path}.2": {"redirect": f"/{path}"}}
    if link_issue == "redirect":
        return {path: {"redirect": f"/{moved(path)}"}}
    if link_issue == "slow":
        seconds = round(0.3 + 2.2 * chance.u("slow"), 2)
        return {path: {chance.pick("slow_how", ("delay", "drip")): seconds}}
    if link_issue == "wrong_content_type":
        return {path: {"content_type": chance.pick("wrong_type", WRONG_TYPES)}}
    return {}


WRONG_TYPES = ("text/plain", "application/octet-stream", "application/json")


def moved(path: str) -> str:
    """Returns where the file of a redirected path lies."""
    site, _, rest = path.partition("/")
    return f"{site}/moved/{rest}"


def _strip(clean: Image.Image, chance: Chance) -> Image.Image:
    """Pastes the picture on a banner, 8 to 14 times as long as wide, lying or standing."""
    thumb = clean.copy()
    thumb.thumbnail((64, 64))
    length_px = chance.between("ratio", 8, 14) * max(thumb.size)
    lying = chance.u("lying") < 0.7
    size = (length_px, max(thumb.size)) if lying else (max(thumb.size), length_px)
    banner = Image.new("RGB", size, chance.pick("banner", ("#ffffff", "#dde6ef", "#f4ead5")))
    at_px = int(chance.u("at") * (length_px - max(thumb.size)))
    banner.paste(thumb, (at_px, 0) if lying else (0, at_px))
    return banner


def _overlaid(clean: Image.Image, text: str, faint: bool, chance: Chance) -> Image.Image:
    """Draws words over the picture, at any size and angle; a faint mark in rows all over."""
    picture = clean.convert("RGBA")
    if max(picture.size) < OVERLAID_PX:  # else its words could not be read
        picture = ImageOps.contain(picture, (OVERLAID_PX, OVERLAID_PX))
    font = ImageFont.truetype(fontpkg.path("Noto Sans"), 48)
    words = " ".join(text.split()[:2])
    ink, edge = chance.pick("ink", INKS)
    if faint:
        words, ink, edge = f"© {SITE}", f"{ink}90", f"{edge}40"
    left, top, right, bottom = ImageDraw.Draw(picture).textbbox((0, 0), words, font, stroke_width=3)
    label = Image.new("RGBA", (int(right - left) + 8, int(bottom - top) + 8))
    brush = ImageDraw.Draw(label)
    brush.text((4 - left, 4 - top), words, ink, font, stroke_width=3, stroke_fill=edge)
    label = label.rotate(chance.pick("angle", ANGLES), Image.Resampling.BICUBIC, expand=True)
    share = 0.45 if faint else 0.6 + 0.4 * chance.u("size")
    width, height = (int(share * length) for length in picture.size)
    label = ImageOps.contain(label, (width, height))
    spare = picture.width - label.width, picture.height - label.height
    corners = [(int(chance.u("left") * spare[0]), int(chance.u("top") * spare[1]))]
    if faint:
        corners = [(x, y) for x in (0, spare[0]) for y in (0, spare[1] // 2, spare[1])]
    for corner in corners:
        picture.alpha_composite(label, corner)
    return picture


OVERLAID_PX = 160
PHRASES = {  # by script; in Latin letters a picture's own caption is drawn
    "latin": (),
    "greek": ("νέα συλλογή", "μεγάλες προσφορές", "καλή χρονιά", "ΕΚΠΤΩΣΕΙΣ ΕΩΣ", "δείτε εδώ"),
    "cyrillic": ("новая коллекция", "скидки сегодня", "з новим", "ЦЕНЫ НИЖЕ", "добро пожаловать"),
    "devanagari": ("नई पुस्तकें", "शुभकामनाएँ सबको", "विशेष प्रस्ताव", "समाचार देखें", "पुरानी किताबें"),
}
SITE = "stock.example"
INKS = (("#ffffff", "#202020"), ("#101010", "#ffffff"), ("#ffe14d", "#5a1010"))  # with their edges
ANGLES = (0, 0, 0, 8, -12, 20, -30, 90)  # degrees


def _mosaic(chance: Chance) -> Image.Image:
    """Makes sixteen coloured tiles."""
    digest = blake2b(f"{chance.seed} {chance.key}".encode(), digest_size=48).digest()
    side_px = chance.between("mosaic", 80, 260)
    return Image.frombytes("RGB", (4, 4), digest).resize(
        (side_px, side_px), Image.Resampling.NEAREST
    )


def _overwritten(file: bytes, chance: Chance) -> bytes:
    """Overwrites four spans with noise, the first near the head; one file in six still decodes."""
    damaged = bytearray(file)
    run_bytes = max(32, len(file) // 100)
    for run in range(4):
        noise = blake2b(f"{chance.key} {run}".encode()).digest() * (1 + run_bytes // 64)
        span = min(len(file), 300) if run == 0 else max(1, len(file) - run_bytes)
        start = int(chance.u(f"corrupt{run}") * span)
        damaged[start : start + run_bytes] = noise[:run_bytes]
    return bytes(damaged[: len(file)])


def _saved(picture: Image.Image, how: str, **options: Any) -> bytes:
    out = io.BytesIO()
    flat = on_background(picture) if picture.mode == "RGBA" else picture
    flat.save(out, how, **options)
    return out.getvalue()
