"""Files of a few kilobytes or megabytes that would cost hours, gigabytes, or a whole shard."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def saved(image: Image.Image, name: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, name, **options)
    return out.getvalue()


def noise(width: int = 40, height: int = 30) -> Image.Image:
    rgb = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(rgb)


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(*chunks: bytes) -> bytes:
    """A picture with more chunks after its header."""
    whole = saved(noise(), "png")
    return whole[:33] + b"".join(chunks) + whole[33:]


def apng(declared: int) -> bytes:
    """An animation of two frames that says it has so many."""
    whole = saved(noise(), "png", save_all=True, append_images=[noise().convert("L")])
    at = whole.index(b"acTL") - 4
    return whole[:at] + chunk(b"acTL", struct.pack(">II", declared, 0)) + whole[at + 20 :]


def scanned(side: int, times: int) -> bytes:
    """A progressive JPEG whose last scan, which refines, stands so many times more."""
    whole = saved(Image.new("RGB", (side, side), "teal"), "jpeg", progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last * times + whole[-2:]


def segmented(times: int) -> bytes:
    """A JPEG whose EXIF comes in so many segments, each of which is put to what there is."""
    whole = saved(noise(), "jpeg")
    return whole[:2] + b"\xff\xe1\0\x40Exif\0\0".ljust(66, b"\0") * times + whole[2:]


def commented(times: int) -> bytes:
    """A GIF with a comment in blocks of one byte."""
    whole = saved(noise(), "gif")
    at = 13 + (3 << (whole[10] & 7) + 1)
    return whole[:at] + b"!\xfe" + b"\x01." * times + b"\0" + whole[at:]


def tiff(*entries: tuple[int, int, int, int], directories: int = 1) -> bytes:
    """A grey TIFF of 1 x 1, with these tags too: number, type, count, value; again and again."""
    tags = {256: (3, 1, 1), 257: (3, 1, 1), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1)}
    tags |= {273: (4, 1, 0), 279: (4, 1, 1)} | {tag: rest for tag, *rest in entries}
    one = struct.pack("<H", len(tags))
    one += b"".join(struct.pack("<HHII", tag, *rest) for tag, rest in sorted(tags.items()))
    offsets = 8 + (len(one) + 4) * np.arange(1, directories + 1, dtype="<u4")
    offsets[-1] = 0
    return b"II*\0\x08\0\0\0" + b"".join(one + offset.tobytes() for offset in offsets)


def in_runs(side: int) -> bytes:
    """A BMP of 8 bits a pixel: of each line one is given, and the rest left out."""
    lines = b"\x01\x01\0\0" * side
    facts = 40, side, side, 1, 8, 1, len(lines), 0, 0, 0, 0
    start = 14 + 40 + 1024
    head = struct.pack("<2sIII", b"BM", start + len(lines), 0, start)
    return head + struct.pack("<IiiHHIIiiII", *facts) + bytes(1024) + lines
