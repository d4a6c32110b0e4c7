"""The format of a picture by its first bytes, and whether the file is complete."""

LAST_BYTES = {"jpeg": b"\xff\xd9", "png": b"IEND\xaeB`\x82", "gif": b";"}
DECLARED = {"webp": (4, 8), "bmp": (2, 0)}  # where the file's size stands, and what it leaves out


def format_of(body: bytes) -> str | None:
    """jpeg, png, gif, webp, bmp, tiff or avif; None of anything else: HTML, SVG, ICO, HEIC."""
    head = body[:16]
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "webp"
    if head.startswith(b"BM"):
        return "bmp"
    if head.startswith((b"II*\0", b"MM\0*")):
        return "tiff"
    if head[4:12] in (b"ftypavif", b"ftypavis"):
        return "avif"
    return None


def is_whole(name: str, body: bytes) -> bool:
    """Whether the bytes end as a file of that format does."""
    if name not in DECLARED:
        return body.rstrip(b"\0\r\n").endswith(LAST_BYTES.get(name, b""))
    at, beyond = DECLARED[name]
    size = int.from_bytes(body[at : at + 4], "little")
    return len(body) >= max(at + 4, size + beyond)
