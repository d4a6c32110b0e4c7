"""Writes the files of planned rows; runs in worker processes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from PIL import Image

from clipmill.pipeline.pools.chance import Chance
from clipmill.pipeline.pools.faults import (
    NO_FILE,
    PHRASES,
    faulty_file,
    moved,
    near_copy,
    served_file,
)
from clipmill.pipeline.pools.picture import (
    clean_file,
    extension,
    on_background,
    picture_of,
    size_px,
)
from clipmill.pipeline.pools.plan import Row


@dataclass(frozen=True)
class Made:
    """A row's file as the crawl stored it, and its path below `www` today."""

    uid: str
    path: str
    width: int
    height: int
    sha256: str


def make_files(group: Sequence[Row], www: Path) -> list[Made]:
    """Writes the files that a server needs for rows of a drawing; empty if it cannot be drawn."""
    try:
        files = crawled_files(group)
    except (ValueError, OSError):  # raised by resvg and Pillow for a broken source file
        return []
    return [_store(row, file, www) for row, file in zip(group, files, strict=True)]


def crawled_files(group: Sequence[Row]) -> list[bytes]:
    """Returns each row's bytes at the time of the crawl, before links went bad."""
    first = group[0]
    drawing = first.drawing
    clean: Callable[[], Image.Image]
    if first.image_issue == "bomb" and not drawing.is_svg:
        return [drawing.image for _ in group]
    if first.is_evaluation:
        base, clean = drawing.image, lambda: on_background(picture_of(drawing, 64))
    else:
        base, clean = clean_file(drawing, first.chance)
    return [_crawled(row, base, clean) for row in group]


def _crawled(row: Row, base: bytes, clean: Callable[[], Image.Image]) -> bytes:
    words = row.drawing.words.get("en")  # Pillow's own font has Latin letters only
    printable = words.label if words else row.drawing.concept
    if row.dup_kind == "repost":
        return clean_file(row.drawing, row.chance)[0]
    if row.near_op is not None:
        return near_copy(clean(), row.near_op, printable, row.chance)
    if row.image_issue is None:
        return base
    # By drawing, not uid: an exact copy repeats the draws of its base row.
    chance = Chance(row.chance.seed, row.drawing.source, row.drawing.key)
    if row.drawn_script and PHRASES[row.drawn_script]:
        printable = chance.pick("phrase", PHRASES[row.drawn_script])
    return faulty_file(row.image_issue, clean(), printable, chance)


def _store(row: Row, file: bytes, www: Path) -> Made:
    path = f"{row.site}/{row.uid[:2]}/{row.uid[2:14]}.{extension(file)}"
    if row.link_issue not in NO_FILE:
        target = www / (moved(path) if row.link_issue == "redirect" else path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(served_file(row.link_issue, file, row.drawing, row.chance))
    width, height = size_px(file)
    return Made(row.uid, path, width, height, sha256(file).hexdigest())
